// SPDX-License-Identifier: Apache-2.0
//! Cases about which endpoints there are, and about several addresses of one Service.

use serde_json::json;

use super::Host::{Client, Node, RemoteShell, Shell, Web1, Web2, Web3, Web4};
use super::{At, Case, Host, Probe, Setup, Source, Want, probes};
use crate::manifests::{Endpoint, Service};
use crate::traffic::MANY_PORTS;

const BOTH: &[Host] = &[Web1, Web3];
const NEAR: &[Host] = &[Web1];

const MANY: &[(Host, &[u16])] = &[
    (Web1, &MANY_PORTS),
    (Web2, &MANY_PORTS),
    (Web3, &MANY_PORTS),
    (Web4, &MANY_PORTS),
];

pub(super) fn cases() -> Vec<Case> {
    use At::{ClusterIp, ExternalIp, NodePort, SecondExternalIp, SecondVip, Vip};
    let masqueraded = Want::Answer(BOTH, Source::Node);
    let local_internal = |service: Service| service.with("internalTrafficPolicy", json!("Local"));
    let ending = [
        Endpoint::terminating(Web1, true),
        Endpoint::terminating(Web2, false),
        Endpoint::ready(Web3),
    ];
    // A range that holds all pods.
    let pods_only = json!(["10.244.0.0/16", "fd00:244::/32"]);
    let all = [
        (
            // A list that is split among several chains.
            MANY_PORTS
                .into_iter()
                .fold(Service::new("many-endpoints", 70, &[]), |service, port| {
                    service.elsewhere(port, &Host::WEB)
                }),
            vec![Probe::new(
                Shell,
                ClusterIp,
                Want::AnswerAt(MANY, Source::Own),
            )],
        ),
        (
            // A named port is another number in each slice.
            Service::new("named-ports", 71, &[Web1])
                .elsewhere(9090, &[Web3])
                .exposed(),
            probes(
                &[Client, Node],
                &[NodePort],
                Want::AnswerAt(&[(Web1, &[8080]), (Web3, &[9090])], Source::Node),
            ),
        ),
        (
            Service::new("hairpin-of-two", 72, &[Web1, Web2]).exposed(),
            {
                let two: &[Host] = &[Web1, Web2];
                let mut all = probes(
                    &[Web1, Web2],
                    &[ClusterIp],
                    Want::Answer(two, Source::NodeByItself),
                );
                all.extend(probes(
                    &[Web2],
                    &[NodePort, ExternalIp, Vip],
                    Want::Answer(two, Source::Node),
                ));
                all
            },
        ),
        (
            Service::new("hairpin-beside-remote", 73, BOTH),
            probes(
                &[Web1],
                &[ClusterIp],
                Want::Answer(BOTH, Source::NodeByItself),
            ),
        ),
        (
            Service::new("two-of-each-address", 74, BOTH)
                .exposed()
                .twice(),
            probes(
                &[Client, Node],
                &[ExternalIp, SecondExternalIp, Vip, SecondVip],
                masqueraded,
            ),
        ),
        (
            local_internal(Service::new("terminating-internal", 75, &[]).endpoints(&ending)),
            probes(&[Shell], &[ClusterIp], Want::Answer(NEAR, Source::Own)),
        ),
        (
            Service::new("source-ranges-pods", 76, BOTH)
                .exposed()
                .twice()
                .with("loadBalancerSourceRanges", pods_only),
            {
                let at = [Vip, SecondVip];
                let mut all = probes(&[Shell, RemoteShell], &at, masqueraded);
                all.extend(probes(&[Client, Node], &at, Want::Dropped));
                all.extend(probes(&[Client], &[ExternalIp, NodePort], masqueraded));
                all
            },
        ),
    ];
    let mut cases: Vec<Case> = all
        .into_iter()
        .map(|(service, probes)| Case {
            setup: Setup::ClusterCidr,
            service,
            probes,
        })
        .collect();
    cases.push(affinity());
    cases
}

/// The memory of clients is one for all addresses of a Service port.
fn affinity() -> Case {
    let sticky = Service::new("affinity-local", 77, BOTH)
        .exposed()
        .with("sessionAffinity", json!("ClientIP"))
        .with("externalTrafficPolicy", json!("Local"));
    let mut all = probes(&[Client], &At::EXTERNAL, Want::OneOf(NEAR, Source::Own));
    all.extend(probes(
        &[Shell],
        &[At::ClusterIp],
        Want::OneOf(BOTH, Source::Own),
    ));
    all.extend(probes(
        &[Shell],
        &At::EXTERNAL,
        Want::OneOf(BOTH, Source::Own),
    ));
    all.extend(probes(
        &[Node],
        &At::EXTERNAL,
        Want::OneOf(BOTH, Source::Node),
    ));
    Case {
        setup: Setup::ClusterCidr,
        service: sticky,
        probes: all,
    }
}
