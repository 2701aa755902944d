// SPDX-License-Identifier: Apache-2.0
//! Cases with traffic policies, topology hints, endpoints that end, and source ranges.

use serde_json::json;

use super::Host::{Client, Node, Remote, Shell, Web1, Web2, Web3};
use super::{At, Case, Host, Mode, Probe, Setup, Source, Want, probes};
use crate::manifests::{Endpoint, OTHER_ZONE, Service, ZONE};

const BOTH: &[Host] = &[Web1, Web3];
const NEAR: &[Host] = &[Web1];
const FAR: &[Host] = &[Web3];

const HEALTH_CHECK: u16 = 31_037;
const NOT_LOCAL: &str = "as upstream: the packet is sent on to wherever the address is routed";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = external_policy();
    cases.extend(internal_policy());
    cases.extend(endpoints());
    cases.extend(source_ranges());
    cases.push(health_check());
    cases
}

/// The port of the health check answers at no external IP of the Service. Where it does,
/// `neighbours::health_checks` asks.
fn health_check() -> Case {
    let service = Service::new("health-check", 37, NEAR)
        .exposed()
        .with("externalTrafficPolicy", json!("Local"))
        .with("healthCheckNodePort", json!(HEALTH_CHECK));
    let at_services = probes(
        &[Client, Remote, Shell, Node],
        &[At::ExternalIp],
        Want::Refused,
    )
    .into_iter()
    .map(|probe| {
        probe
            .port(HEALTH_CHECK, HEALTH_CHECK)
            .but(Mode::Iptables, Want::NoAnswer, NOT_LOCAL)
    })
    .collect();
    case(service, at_services)
}

fn case(service: Service, probes: Vec<Probe>) -> Case {
    Case {
        setup: Setup::ClusterCidr,
        service,
        probes,
    }
}

fn external_policy() -> Vec<Case> {
    use At::ClusterIp;
    let local = |service: Service| {
        service
            .exposed()
            .with("externalTrafficPolicy", json!("Local"))
    };
    let mut some = probes(
        &[Client, Remote],
        &At::EXTERNAL,
        Want::Answer(NEAR, Source::Own),
    );
    some.push(Probe::new(
        Shell,
        ClusterIp,
        Want::Answer(BOTH, Source::Own),
    ));
    some.extend(probes(
        &[Shell],
        &At::EXTERNAL,
        Want::Answer(BOTH, Source::Own),
    ));
    some.extend(probes(
        &[Node],
        &At::EXTERNAL,
        Want::Answer(BOTH, Source::Node),
    ));

    let mut none = vec![Probe::new(Shell, ClusterIp, Want::Answer(FAR, Source::Own))];
    none.extend(probes(&[Client, Remote], &At::EXTERNAL, Want::Dropped));
    none.extend(probes(
        &[Shell],
        &At::EXTERNAL,
        Want::Answer(FAR, Source::Own),
    ));
    none.extend(probes(
        &[Node],
        &At::EXTERNAL,
        Want::Answer(FAR, Source::Node),
    ));
    vec![
        case(local(Service::new("external-local", 20, BOTH)), some),
        case(local(Service::new("external-local-none", 21, FAR)), none),
        case(
            local(Service::new("external-local-no-endpoints", 22, &[])),
            probes(&[Client, Remote, Shell, Node], &At::EXTERNAL, Want::Refused),
        ),
    ]
}

fn internal_policy() -> Vec<Case> {
    let local = |service: Service| service.with("internalTrafficPolicy", json!("Local"));
    let external = probes(&[Client], &At::EXTERNAL, Want::Answer(BOTH, Source::Node));
    let mut some = vec![
        Probe::new(Shell, At::ClusterIp, Want::Answer(NEAR, Source::Own)),
        Probe::new(Node, At::ClusterIp, Want::Answer(NEAR, Source::Node)),
    ];
    some.extend(probes(
        &[Remote, Client],
        &[At::ClusterIp],
        Want::Answer(NEAR, Source::Node),
    ));
    some.extend(external);
    let none = || {
        let everybody = [Client, Remote, Shell, Node];
        probes(&everybody, &[At::ClusterIp], Want::Dropped)
    };
    let mut none_exposed = none();
    // Upstream sends these to the other node when there is an address for outside, too.
    none_exposed.extend(probes(
        &[Client],
        &At::EXTERNAL,
        Want::Answer(FAR, Source::Node),
    ));
    vec![
        case(
            local(Service::new("internal-local", 23, BOTH).exposed()),
            some,
        ),
        case(local(Service::new("internal-local-none", 24, FAR)), none()),
        case(
            local(Service::new("internal-local-none-exposed", 25, FAR).exposed()),
            none_exposed,
        ),
    ]
}

/// Which endpoints are chosen.
fn endpoints() -> Vec<Case> {
    let shell = |want| {
        vec![Probe::new(
            Shell,
            At::ClusterIp,
            Want::Answer(want, Source::Own),
        )]
    };
    let new = |name, n, endpoints: &[Endpoint]| Service::new(name, n, &[]).endpoints(endpoints);
    let ready = Endpoint::ready;
    vec![
        case(
            new(
                "zone-hints",
                30,
                &[
                    ready(Web1).for_zone(OTHER_ZONE),
                    ready(Web2).for_zone(ZONE),
                    ready(Web3).for_zone(ZONE),
                ],
            ),
            shell(&[Web2, Web3]),
        ),
        case(
            // One endpoint without a hint: hints are not used.
            new(
                "zone-hints-missing",
                31,
                &[ready(Web1).for_zone(OTHER_ZONE), ready(Web3)],
            ),
            shell(BOTH),
        ),
        case(
            new(
                "node-hints",
                32,
                &[ready(Web1).for_node("node"), ready(Web3).for_node("remote")],
            ),
            shell(NEAR),
        ),
        case(
            new(
                "terminating",
                33,
                &[Endpoint::terminating(Web1, true), ready(Web3)],
            ),
            shell(FAR),
        ),
        case(
            new(
                "all-terminating",
                34,
                &[
                    Endpoint::terminating(Web1, true),
                    Endpoint::terminating(Web3, false),
                ],
            ),
            shell(NEAR),
        ),
        case(
            new(
                "terminating-local",
                35,
                &[Endpoint::terminating(Web1, true), ready(Web3)],
            )
            .exposed()
            .with("externalTrafficPolicy", json!("Local")),
            probes(&[Client], &At::EXTERNAL, Want::Answer(NEAR, Source::Own)),
        ),
        case(
            new(
                "not-ready",
                36,
                &[
                    Endpoint {
                        ready: false,
                        ..ready(Web1)
                    },
                    ready(Web3),
                ],
            ),
            shell(FAR),
        ),
    ]
}

fn source_ranges() -> Vec<Case> {
    let masqueraded = Want::Answer(BOTH, Source::Node);
    let with = |service: Service, ranges: &[&str]| {
        service
            .exposed()
            .with("loadBalancerSourceRanges", json!(ranges))
    };
    let mut client_only = vec![Probe::new(Client, At::Vip, masqueraded)];
    client_only.extend(probes(&[Remote, Shell, Node], &[At::Vip], Want::Dropped));
    // They hold for the load balancer's address alone.
    client_only.extend(probes(
        &[Remote, Node],
        &[At::NodePort, At::ExternalIp],
        masqueraded,
    ));
    let mut with_node = probes(&[Client, Node], &[At::Vip], masqueraded);
    with_node.extend(probes(&[Remote, Shell], &[At::Vip], Want::Dropped));
    let local = vec![
        Probe::new(Client, At::Vip, Want::Answer(NEAR, Source::Own)),
        Probe::new(Shell, At::Vip, Want::Answer(BOTH, Source::Own)),
        Probe::new(Node, At::Vip, Want::Answer(BOTH, Source::Node)),
        Probe::new(Remote, At::Vip, Want::Dropped),
    ];
    vec![
        case(
            with(
                Service::new("source-ranges-local", 43, BOTH)
                    .with("externalTrafficPolicy", json!("Local")),
                &[
                    "172.20.0.100/32",
                    "172.20.0.10/32",
                    "fd00:20::64/128",
                    "fd00:20::a/128",
                    "10.244.0.0/16",
                    "fd00:244::/32",
                ],
            ),
            local,
        ),
        case(
            with(
                Service::new("source-ranges", 40, BOTH),
                &["172.20.0.100/32", "fd00:20::64/128"],
            ),
            client_only,
        ),
        case(
            with(
                Service::new("source-ranges-node", 41, BOTH),
                &[
                    "172.20.0.100/32",
                    "172.20.0.10/32",
                    "fd00:20::64/128",
                    "fd00:20::a/128",
                ],
            ),
            with_node,
        ),
    ]
}
