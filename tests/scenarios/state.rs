// SPDX-License-Identifier: Apache-2.0
//! The kernel follows the manifests through every kind of change.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{Lab, steps};
use kpr_testkit::manifests::{Endpoint, Service};
use kpr_testkit::oracle;
use kpr_testkit::proxy::metric;
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::Protocol;
use kpr_testkit::wait;

const STARTED: &str = "kube_proxy_rs_processes_started_total";

pub(super) fn follows_every_change(binary: &Path) -> Result<()> {
    let mut web = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let dns = Service::new("dns", 2, &[Host::Web2]).protocols(&[Protocol::Udp, Protocol::Tcp]);
    let lab = Lab::new(binary, &[web.clone(), dns.clone()], &[])?;

    // A plan changes nothing.
    let planned = lab.plan()?;
    ensure!(
        planned.code == Some(2) && !steps(&planned).is_empty(),
        "wanted a plan, got {planned:?}"
    );
    lab.is_untouched()?;

    let proxy = lab.start()?;
    let settle = |what: &str, services: &[Service]| {
        lab.settles_at(services, "rr")
            .map_err(|error| error.context(format!("{what}; the log:\n{}", proxy.log())))
    };
    settle("after the start", &[web.clone(), dns.clone()])?;
    let rules = Family::ALL.map(|family| oracle::rules(lab.node(), family).ok());
    // The loop says what the start has cost when its first rounds are over.
    let started = wait::until("the processes of the start are counted", || {
        let count = metric(lab.node(), STARTED)?;
        ensure!(count > 0.0, "it is {count}");
        Ok(count)
    })?;

    let api = Service::new("api", 3, &[Host::Web4]).exposed();
    lab.manifests.apply(&api)?;
    settle("another Service", &[web.clone(), dns.clone(), api.clone()])?;

    let ready =
        |hosts: &[Host]| -> Vec<Endpoint> { hosts.iter().copied().map(Endpoint::ready).collect() };
    web.endpoints = ready(&Host::WEB);
    lab.manifests.apply(&web)?;
    settle("more endpoints", &[web.clone(), dns.clone(), api.clone()])?;

    web.endpoints = ready(&[Host::Web3]);
    lab.manifests.apply(&web)?;
    settle("fewer endpoints", &[web.clone(), dns.clone(), api.clone()])?;

    web.endpoints.clear();
    lab.manifests.apply(&web)?;
    settle("no endpoints", &[web.clone(), dns.clone(), api.clone()])?;

    for port in &mut web.ports {
        port.port = 8000;
        port.target = 9090;
        port.node_port = Some(30_999);
    }
    web.endpoints = ready(&[Host::Web1, Host::Web2]);
    lab.manifests.apply(&web)?;
    settle("other ports", &[web.clone(), dns.clone(), api.clone()])?;

    web.external = false;
    web.load_balancer = false;
    for port in &mut web.ports {
        port.node_port = None;
    }
    lab.manifests.apply(&web)?;
    settle(
        "no longer exposed",
        &[web.clone(), dns.clone(), api.clone()],
    )?;

    lab.manifests.delete(&api)?;
    settle("a deleted Service", &[web.clone(), dns.clone()])?;
    lab.manifests.delete(&web)?;
    lab.manifests.delete(&dns)?;
    settle("nothing left", &[])?;

    ensure!(
        Family::ALL.map(|family| oracle::rules(lab.node(), family).ok()) == rules,
        "a change of a Service has touched the fixed rules"
    );
    let more = metric(lab.node(), STARTED)? - started;
    ensure!(
        more == 0.0,
        "{more} processes were started after the start-up"
    );
    Ok(())
}
