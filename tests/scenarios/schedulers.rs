// SPDX-License-Identifier: Apache-2.0
//! Every scheduler of the kernel can be chosen by a flag, also when another one is in force.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::Lab;
use crate::cases::At;
use crate::common::manifests::Service;
use crate::common::oracle;
use crate::common::topology::{Family, Host};
use crate::common::traffic::{Answer, Outcome, Patience, Protocol, ask};

const SCHEDULERS: [&str; 13] = [
    "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh",
];
/// Those that send the same client, or all clients of one address, to the same endpoint.
const STICKY: [&str; 4] = ["dh", "sh", "lblc", "lblcr"];

pub(super) fn all_by_flag(binary: &Path) -> Result<()> {
    let endpoints = [Host::Web1, Host::Web2, Host::Web3];
    let service = Service::new("web", 1, &endpoints);
    let mut lab = Lab::new(binary, std::slice::from_ref(&service), &[])?;
    let flags = lab.invocation.flags.clone();
    for scheduler in SCHEDULERS {
        lab.invocation.flags.clone_from(&flags);
        lab.invocation
            .flags
            .push(format!("--ipvs-scheduler={scheduler}"));
        // The one before is killed; this one changes what it left behind.
        let proxy = lab.start()?;
        one(&lab, &service, scheduler)
            .with_context(|| format!("scheduler {scheduler}; the log:\n{}", proxy.log()))?;
    }
    lab.nothing_to_do()
}

fn one(lab: &Lab, service: &Service, scheduler: &str) -> Result<()> {
    let hosts: Vec<&str> = service.endpoints.iter().map(|e| e.host.name()).collect();
    for family in Family::ALL {
        let to: SocketAddr = At::ClusterIp.address(service, family, 80);
        let mut answers = Vec::new();
        for _ in 0..6 {
            match ask(
                lab.topology.host(Host::Shell),
                None,
                to,
                Protocol::Tcp,
                Patience::Long,
            )? {
                Outcome::Answered(Answer { by, .. }) if hosts.contains(&by.as_str()) => {
                    answers.push(by);
                }
                outcome => bail!("{to} was {outcome}"),
            }
        }
        let distinct: BTreeSet<&String> = answers.iter().collect();
        if STICKY.contains(&scheduler) {
            ensure!(distinct.len() == 1, "{to} was answered by {answers:?}");
        }
        if scheduler == "rr" {
            ensure!(distinct.len() == 3, "{to} was answered by {answers:?}");
        }
    }
    let found = oracle::virtual_servers(lab.node())?;
    let services = std::slice::from_ref(service);
    let wanted = oracle::wanted_virtual_servers(services, scheduler, &[]);
    let differences = oracle::differences(&wanted, &found);
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}
