// SPDX-License-Identifier: Apache-2.0
//! A real Prometheus scrapes the proxy of the guest while there is work: every panel of the
//! dashboards and every recording rule has data. (`cluster_monitoring` does this with a proxy in
//! iptables mode.)

use std::net::SocketAddr;

use crate::Test;
use crate::objects::{service, slice};
use crate::world::{POD, World};
use kpr_testkit::dashboard;
use kpr_testkit::prometheus::Prometheus;
use kpr_testkit::testbed::Restart;
use kpr_testkit::wait::must;

pub(crate) const TESTS: &[Test] = &[("every_panel_has_data", every_panel_has_data)];

/// A connection stays with an endpoint that goes, so it drains; other endpoints change, a set loses
/// an entry, objects are skipped and Events written, the API server goes and comes back, until all
/// panels have data.
fn every_panel_has_data(world: &mut World) {
    world.create(&(service("held", "") + &slice("held", &[&format!("{POD} kpr-guest")])));
    let address = world.cluster_ips("held")[0];
    world.agree();
    let answers = world.talk(&SocketAddr::new(address, 80).to_string());
    let target = SocketAddr::new(world.guest.addresses[0], 10249);
    let prometheus = Prometheus::start(target).unwrap();
    world.apply(&slice("held", &["10.2.0.11 kpr-far"]));
    let testbed = world.testbed.clone();
    let _restart = Restart(&testbed);
    let (mut turn, mut scrapes) = (0, 0.0);
    must("every panel has data", || {
        let now = prometheus.scrapes().map_err(|error| format!("{error:?}"))?;
        if now <= scrapes {
            return Err(format!("{now} scrapes"));
        }
        (turn, scrapes) = (turn + 1, now);
        let odd = format!("kube-proxy-rs.io/scheduler=none-{turn}");
        world.apply(&triggered(&slice(
            "held",
            &[&format!("10.2.0.{turn} kpr-far")],
        )));
        world.kubectl(&format!("annotate --overwrite service held {odd}"));
        world.guest.run(
            "iptables -w -t nat -F KUBE-POSTROUTING
            for path in healthz livez; do curl -s -o /dev/null http://127.0.0.1:10256/$path; done",
        );
        if turn == 5 {
            testbed.apiserver("stop");
            testbed.apiserver("start");
        }
        let empty = dashboard::empty(&prometheus, "ipvs").map_err(|error| format!("{error:?}"))?;
        if empty.is_empty() {
            Ok(())
        } else {
            Err(empty.join("\n"))
        }
    });
    world.answers_go_on(&answers);
    for what in [
        "max_over_time(kube_proxy_rs_draining_servers[10m])",
        "kube_proxy_rs_ipvs_connections_total",
        "kube_proxy_rs_ipvs_bytes_total",
        "sum(kube_proxy_rs_drift_total{state=\"repaired\"})",
    ] {
        let values = prometheus.query(what).unwrap();
        assert!(
            !values.is_empty() && values.iter().all(|value| *value > 0.0),
            "{what}: {values:?}"
        );
    }
    must("the last flush is repaired", || {
        let chain = world.guest.run("iptables -w -t nat -S KUBE-POSTROUTING");
        // The first line is the chain itself.
        if chain.lines().count() > 1 {
            Ok(())
        } else {
            Err(chain)
        }
    });
    // The connection ends, so that nothing is left to drain.
    world.clear();
    assert_eq!(
        dashboard::rules_in_error(&prometheus).unwrap(),
        Vec::<String>::new()
    );
}

/// A slice that says when its endpoints changed, as a controller writes it: now.
fn triggered(slice: &str) -> String {
    let now = jiff::Timestamp::now();
    let annotation = format!(
        "annotations: {{endpoints.kubernetes.io/last-change-trigger-time: \"{now}\"}}, labels:"
    );
    slice.replacen("labels:", &annotation, 1)
}
