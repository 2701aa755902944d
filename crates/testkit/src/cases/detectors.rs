// SPDX-License-Identifier: Apache-2.0
//! Who counts as a pod of this node, in each way of telling: such traffic keeps its address and
//! takes short cuts.

use serde_json::json;

use super::Host::{Client, Node, Remote, RemoteShell, Shell, Web1, Web3};
use super::{At, Case, Host, Setup, Source, Want, probes};
use crate::manifests::Service;

const BOTH: &[Host] = &[Web1, Web3];
const NEAR: &[Host] = &[Web1];

pub(super) fn cases() -> Vec<Case> {
    [
        (Setup::NodeCidr, "node-cidr", 60),
        (Setup::Bridge, "bridge", 62),
        (Setup::InterfacePrefix, "interface-prefix", 64),
    ]
    .into_iter()
    .flat_map(|(setup, name, n)| {
        let service = |kind: &str, n| Service::new(&format!("{name}-{kind}"), n, BOTH).exposed();
        [
            Case {
                setup,
                service: service("cluster", n),
                probes: cluster(),
            },
            Case {
                setup,
                service: service("local", n + 1).with("externalTrafficPolicy", json!("Local")),
                probes: local(),
            },
        ]
    })
    .collect()
}

fn cluster() -> Vec<super::Probe> {
    use At::{ClusterIp, ExternalIp, SecondNodePort, Vip};
    let mut all = probes(&[Shell], &[ClusterIp], Want::Answer(BOTH, Source::Own));
    // Pods of other nodes are not told from strangers.
    all.extend(probes(
        &[Node, Remote, RemoteShell],
        &[ClusterIp],
        Want::Answer(BOTH, Source::Node),
    ));
    all.extend(probes(
        &[Client, Shell],
        &[SecondNodePort, ExternalIp, Vip],
        Want::Answer(BOTH, Source::Node),
    ));
    all
}

fn local() -> Vec<super::Probe> {
    use At::{ExternalIp, SecondNodePort, Vip};
    let external = [SecondNodePort, ExternalIp, Vip];
    let mut all = probes(
        &[Client, RemoteShell],
        &external,
        Want::Answer(NEAR, Source::Own),
    );
    all.extend(probes(&[Shell], &external, Want::Answer(BOTH, Source::Own)));
    all.extend(probes(&[Node], &external, Want::Answer(BOTH, Source::Node)));
    all
}
