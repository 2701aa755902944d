// SPDX-License-Identifier: Apache-2.0
//! Slow start: a new endpoint gets few connections first and its share in the end, also when the
//! proxy is restarted meanwhile.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::Lab;
use kpr_testkit::cases::At;
use kpr_testkit::manifests::{Endpoint, Service};
use kpr_testkit::oracle;
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{Outcome, Patience, Protocol, ask};
use kpr_testkit::wait;

const SLOW_START: &str = "kube-proxy-rs.io/slow-start";

/// Who of the two answers so many new connections.
fn shares(lab: &Lab, service: &Service, family: Family, count: usize) -> Result<[usize; 2]> {
    let to = At::ClusterIp.address(service, family, 80);
    let mut shares = [0; 2];
    for _ in 0..count {
        let from = lab.topology.host(Host::Shell);
        match ask(from, None, to, Protocol::Tcp, Patience::Long)? {
            Outcome::Answered(answer) if answer.by == Host::Web1.name() => shares[0] += 1,
            Outcome::Answered(_) => shares[1] += 1,
            outcome => bail!("a connection to {to} was {outcome}"),
        }
    }
    Ok(shares)
}

fn wait_for_weights(lab: &Lab, service: &Service, wanted: &[u32]) -> Result<()> {
    wait::until("the weights are as wanted", || {
        let found = oracle::virtual_servers(lab.node())?;
        for family in Family::ALL {
            let key = (Protocol::Tcp, At::ClusterIp.address(service, family, 80));
            let server = found.get(&key).context("there is no virtual server")?;
            let weights: Vec<u32> = server.real_servers.values().copied().collect();
            ensure!(weights == wanted, "wanted {wanted:?}, they are {weights:?}");
        }
        Ok(())
    })
}

pub(super) fn gives_a_new_endpoint_its_share_in_time(binary: &Path) -> Result<()> {
    let one = Service::new("web", 1, &[Host::Web1])
        .protocols(&[Protocol::Tcp])
        .annotated("kube-proxy-rs.io/scheduler", "wrr")
        .annotated(SLOW_START, "15m");
    let lab = Lab::new(
        binary,
        std::slice::from_ref(&one),
        &["--service-schedulers=wrr"],
    )?;
    let proxy = lab.start()?;
    wait_for_weights(&lab, &one, &[10])?;
    let two = one.endpoints(&[Endpoint::ready(Host::Web1), Endpoint::ready(Host::Web3)]);
    lab.manifests.apply(&two)?;
    wait_for_weights(&lab, &two, &[10, 1])?;
    for family in Family::ALL {
        let found = shares(&lab, &two, family, 22)?;
        ensure!(found == [20, 2], "{family}: {found:?} at the first step");
    }
    lab.nothing_to_do_soon()?;
    proxy.terminate()?;
    lab.nothing_to_do()?;
    let proxy = lab.start()?;
    wait_for_weights(&lab, &two, &[10, 1])?;
    // The rest of the way takes seconds.
    let fast = two.annotated(SLOW_START, "9s");
    lab.manifests.apply(&fast)?;
    wait_for_weights(&lab, &fast, &[10, 10]).with_context(|| proxy.log())?;
    for family in Family::ALL {
        let found = shares(&lab, &fast, family, 20)?;
        ensure!(found == [10, 10], "{family}: {found:?} in the end");
    }
    lab.nothing_to_do_soon()?;
    // A scheduler that ignores weights.
    let ignored = fast.annotated("kube-proxy-rs.io/scheduler", "rr");
    lab.manifests.apply(&ignored)?;
    wait_for_weights(&lab, &ignored, &[1, 1])?;
    proxy.wait_for_log(&["default/web", "does not let endpoints start slowly"])?;
    Ok(())
}
