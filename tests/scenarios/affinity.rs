// SPDX-License-Identifier: Apache-2.0
//! A client that was kept with an endpoint moves on when the endpoint goes, and only then.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde_json::json;

use super::Lab;
use kpr_testkit::cases::At;
use kpr_testkit::manifests::{Endpoint, Service};
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{Outcome, Patience, Protocol, ask};
use kpr_testkit::wait;

pub(super) fn follows_endpoints(binary: &Path) -> Result<()> {
    let sticky = |service: Service| {
        service
            .exposed()
            .with("sessionAffinity", json!("ClientIP"))
            .with(
                "sessionAffinityConfig",
                json!({ "clientIP": { "timeoutSeconds": 3600 } }),
            )
    };
    let cluster = sticky(Service::new("cluster", 1, &Host::WEB));
    let local =
        sticky(Service::new("local", 2, &Host::WEB)).with("externalTrafficPolicy", json!("Local"));
    let lab = Lab::new(binary, &[cluster.clone(), local.clone()], &[])?;
    let _proxy = lab.start()?;
    for (service, from, at) in [
        (&cluster, Host::Client, At::Vip),
        (&cluster, Host::Shell, At::ClusterIp),
        (&local, Host::Client, At::NodePort),
        // By a mark, where affinity is a hash of the client's address.
        (&local, Host::Shell, At::Vip),
        (&local, Host::Node, At::NodePort),
    ] {
        for family in Family::ALL {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let to = at.address(service, family, 80);
                let who = || -> Result<String> {
                    match ask(lab.topology.host(from), None, to, protocol, Patience::Long)? {
                        Outcome::Answered(answer) => Ok(answer.by),
                        other => bail!("{from} to {to} {protocol}: {other}"),
                    }
                };
                let first = who()?;
                for _ in 0..3 {
                    let again = who()?;
                    ensure!(again == first, "{from} to {to}: {first}, then {again}");
                }
                let rest: Vec<Endpoint> = Host::WEB
                    .into_iter()
                    .filter(|host| host.name() != first)
                    .map(Endpoint::ready)
                    .collect();
                let mut changed = service.clone();
                changed.endpoints = rest;
                lab.manifests.apply(&changed)?;
                wait::until("the client moves on", || {
                    let now = who()?;
                    ensure!(now != first, "{from} to {to} {protocol}: still {now}");
                    Ok(())
                })?;
                lab.nothing_to_do_soon()?;
                let second = who()?;
                ensure!(second == who()?, "{from} to {to}: not kept after the move");
                lab.manifests.apply(service)?;
                lab.nothing_to_do_soon()?;
            }
        }
    }
    Ok(())
}
