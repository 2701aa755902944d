// SPDX-License-Identifier: Apache-2.0
//! Tests with real packets that several programs run, each with the mode and the kernel that it
//! has.

use anyhow::{Result, ensure};

use crate::cases::At;
use crate::manifests::Service;
use crate::topology::{Family, Host, Topology};
use crate::traffic::{Outcome, Patience, Protocol, ask};

pub mod changes;
pub mod flows;
pub mod lifecycle;
pub mod neighbours;
pub mod rollout;
pub mod seen;

/// A Service answers pods, the node and clients outside.
pub fn answers(
    topology: &Topology,
    service: &Service,
    families: &[Family],
    patience: Patience,
) -> Result<()> {
    for family in families {
        for (from, at) in [
            (Host::Shell, At::ClusterIp),
            (Host::Node, At::ClusterIp),
            (Host::Client, At::NodePort),
            (Host::Client, At::Vip),
        ] {
            let to = at.address(service, *family, 80);
            let met = ask(topology.host(from), None, to, Protocol::Tcp, patience)?;
            let is_answer = matches!(met, Outcome::Answered(_));
            ensure!(is_answer, "{from} at {to}: {met}");
        }
    }
    Ok(())
}
