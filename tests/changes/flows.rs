// SPDX-License-Identifier: Apache-2.0
//! Open connections outlive every change; new ones obey it.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use super::{Lab, answered, at};
use crate::cases::{At, Backend};
use crate::common::manifests::{Endpoint, Service};
use crate::common::topology::{Family, Host};
use crate::common::traffic::{Connection, Outcome, Patience, Protocol};
use crate::common::wait;

pub(super) fn follow_changes(binary: &Path, backend: Backend) -> Result<()> {
    let mut web = Service::new("web", 1, &[Host::Web1]).exposed();
    let lab = Lab::new(binary, backend, &[web.clone()], &[])?;
    let mut open = Vec::new();
    for family in Family::ALL {
        for (from, place) in [
            (Host::Shell, At::ClusterIp),
            (Host::Client, At::Vip),
            (Host::Client, At::NodePort),
        ] {
            open.push(connect(&lab, from, at(place, &web, family))?);
        }
    }

    // An endpoint that is exchanged for another one.
    web.endpoints = vec![Endpoint::ready(Host::Web3)];
    lab.manifests.apply(&web)?;
    for (from, to) in everywhere(&web) {
        only(&lab, from, to, Host::Web3)?;
    }
    live_on(&mut open).context("after their endpoint left")?;
    for (from, to) in everywhere(&web) {
        open.push(connect(&lab, from, to)?);
    }

    // Source ranges that leave the client out, and that hold for the load balancer's address alone.
    let ranged = web.clone().with(
        "loadBalancerSourceRanges",
        json!(["192.0.2.0/24", "2001:db8:1::/64"]),
    );
    lab.manifests.apply(&ranged)?;
    for family in Family::ALL {
        let vip = at(At::Vip, &web, family);
        becomes(&lab, Host::Client, vip, |outcome| {
            *outcome == Outcome::TimedOut
        })?;
        only(
            &lab,
            Host::Client,
            at(At::NodePort, &web, family),
            Host::Web3,
        )?;
    }
    live_on(&mut open).context("after the ranges came")?;
    lab.manifests.apply(&web)?;
    for (from, to) in everywhere(&web) {
        only(&lab, from, to, Host::Web3)?;
    }

    // Nobody is left.
    web.endpoints.clear();
    lab.manifests.apply(&web)?;
    for (from, to) in everywhere(&web) {
        becomes(&lab, from, to, |outcome| *outcome == Outcome::Refused)?;
    }
    live_on(&mut open).context("after the last endpoint left")?;
    web.endpoints = vec![Endpoint::ready(Host::Web2)];
    lab.manifests.apply(&web)?;
    for (from, to) in everywhere(&web) {
        only(&lab, from, to, Host::Web2)?;
        open.push(connect(&lab, from, to)?);
    }

    // The Service is gone: its addresses are as if they had never been, its node port is the node's again.
    lab.manifests.delete(&web)?;
    for (from, to) in everywhere(&web) {
        becomes(&lab, from, to, |outcome| {
            !matches!(outcome, Outcome::Answered(_))
        })?;
    }
    for family in Family::ALL {
        let node_port = at(At::NodePort, &web, family);
        becomes(&lab, Host::Client, node_port, |outcome| {
            *outcome == Outcome::Refused
        })?;
    }
    live_on(&mut open).with_context(|| {
        format!(
            "after the Service was deleted; the log:\n{}",
            lab.proxy.log()
        )
    })
}

/// Clients and what they connect to.
fn everywhere(web: &Service) -> Vec<(Host, SocketAddr)> {
    Family::ALL
        .into_iter()
        .flat_map(|family| {
            [
                (Host::Shell, at(At::ClusterIp, web, family)),
                (Host::Client, at(At::Vip, web, family)),
                (Host::Client, at(At::NodePort, web, family)),
            ]
        })
        .collect()
}

fn connect(lab: &Lab, from: Host, to: SocketAddr) -> Result<(SocketAddr, Connection)> {
    let opened = Connection::open(lab.host(from), to, Protocol::Tcp, Patience::Long)?;
    let connection = opened.map_err(|outcome| anyhow!("{from} to {to}: {outcome}"))?;
    Ok((to, connection))
}

fn live_on(open: &mut [(SocketAddr, Connection)]) -> Result<()> {
    for (to, connection) in open {
        let by = connection.answer.by.clone();
        connection
            .echo()
            .with_context(|| format!("to {to}, with {by}"))?;
    }
    Ok(())
}

/// Waits until a new connection meets this.
fn becomes(lab: &Lab, from: Host, to: SocketAddr, is_met: impl Fn(&Outcome) -> bool) -> Result<()> {
    wait::until(&format!("{from} meets something else at {to}"), || {
        let outcome =
            crate::common::traffic::ask(lab.host(from), None, to, Protocol::Tcp, Patience::Short)?;
        ensure!(is_met(&outcome), "it was {outcome}");
        Ok(())
    })
}

/// Waits until a new connection reaches this endpoint, which then all do.
fn only(lab: &Lab, from: Host, to: SocketAddr, wanted: Host) -> Result<()> {
    let by = |outcome: &Outcome| match outcome {
        Outcome::Answered(answer) => answer.by == wanted.name(),
        _ => false,
    };
    becomes(lab, from, to, by)?;
    for _ in 0..5 {
        let answer = answered(lab.ask(from, to, Protocol::Tcp)?)?;
        ensure!(answer.by == wanted.name(), "{from} to {to}: {answer:?}");
    }
    Ok(())
}
