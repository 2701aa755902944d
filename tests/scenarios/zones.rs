// SPDX-License-Identifier: Apache-2.0
//! Weights by place: near endpoints get more connections, and those that are far away all of them
//! when no other is left.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::Lab;
use kpr_testkit::cases::At;
use kpr_testkit::manifests::{Endpoint, OTHER_ZONE, Service, ZONE};
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{Outcome, Patience, Protocol, ask};

const WEIGHTS: &str = "kube-proxy-rs.io/topology-weights";

/// How many of so many new connections each endpoint answers.
fn shares(lab: &Lab, service: &Service, family: Family) -> Result<BTreeMap<String, usize>> {
    let to = At::ClusterIp.address(service, family, 80);
    let mut shares = BTreeMap::new();
    for _ in 0..14 {
        let from = lab.topology.host(Host::Shell);
        match ask(from, None, to, Protocol::Tcp, Patience::Long)? {
            Outcome::Answered(answer) => *shares.entry(answer.by).or_default() += 1,
            outcome => bail!("a connection to {to} was {outcome}"),
        }
    }
    Ok(shares)
}

pub(super) fn near_endpoints_get_more(binary: &Path) -> Result<()> {
    let all = [
        Endpoint::ready(Host::Web1).in_zone(ZONE),
        Endpoint::ready(Host::Web3).in_zone(ZONE),
        Endpoint::ready(Host::Web4).in_zone(OTHER_ZONE),
    ];
    let service = Service::new("web", 1, &[])
        .protocols(&[Protocol::Tcp])
        .endpoints(&all)
        .annotated("kube-proxy-rs.io/scheduler", "wrr")
        .annotated(WEIGHTS, "same-node=4,same-zone=2,other=1");
    let lab = Lab::new(
        binary,
        std::slice::from_ref(&service),
        &["--service-schedulers=wrr"],
    )?;
    let proxy = lab.start()?;
    for family in Family::ALL {
        let found = shares(&lab, &service, family)?;
        let wanted = [(Host::Web1, 8), (Host::Web3, 4), (Host::Web4, 2)];
        let wanted = wanted.map(|(host, count)| (host.name().to_owned(), count));
        ensure!(found == BTreeMap::from(wanted), "{family}: {found:?}");
    }
    lab.nothing_to_do_soon()?;
    // Nobody else is left.
    let far = service.clone().endpoints(&all[2..]);
    lab.manifests.apply(&far)?;
    for family in Family::ALL {
        kpr_testkit::wait::until("all go to the endpoint of the other zone", || {
            let found = shares(&lab, &far, family)?;
            let wanted = [(Host::Web4.name().to_owned(), 14)];
            ensure!(found == BTreeMap::from(wanted), "{family}: {found:?}");
            Ok(())
        })?;
    }
    let ignored = service.annotated("kube-proxy-rs.io/scheduler", "rr");
    lab.manifests.apply(&ignored)?;
    proxy.wait_for_log(&[
        "default/web",
        "scheduler rr does not spread connections by weight",
    ])?;
    Ok(())
}
