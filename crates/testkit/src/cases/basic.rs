// SPDX-License-Identifier: Apache-2.0
//! Cases without traffic policies: every kind of address, from everywhere.

use serde_json::json;

use super::Host::{Client, Node, Remote, RemoteShell, Shell, Web1, Web2, Web3};
use super::{At, Case, Host, Mode, Probe, Setup, Source, Want, probes};
use crate::manifests::Service;
use crate::topology::node_port;
use crate::traffic::HOST_PORT;

const BOTH: &[Host] = &[Web1, Web3];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = addresses();
    cases.extend(nobody());
    cases.extend(masquerade());
    cases
}

fn case(setup: Setup, service: Service, probes: Vec<Probe>) -> Case {
    Case {
        setup,
        service,
        probes,
    }
}

fn addresses() -> Vec<Case> {
    use At::{ClusterIp, SecondNodePort};
    let masqueraded = Want::Answer(BOTH, Source::Node);
    let mut cluster_ip = probes(&[Node, Remote, Client], &[ClusterIp], masqueraded);
    cluster_ip.push(Probe::new(
        Shell,
        ClusterIp,
        Want::Answer(BOTH, Source::Own),
    ));
    let mut external = probes(&[Client, Remote, Shell, Node], &At::EXTERNAL, masqueraded);
    external.extend(probes(
        &[Client, Shell, Node],
        &[SecondNodePort],
        masqueraded,
    ));
    let multi_port = [(80, 8080), (81, 9090)].map(|(port, target)| {
        Probe::new(Shell, ClusterIp, Want::Answer(BOTH, Source::Own)).port(port, target)
    });
    let sticky = json!({ "clientIP": { "timeoutSeconds": 600 } });
    let hairpin_at = [ClusterIp, At::NodePort, At::ExternalIp, At::Vip];
    vec![
        case(
            Setup::ClusterCidr,
            Service::new("cluster-ip", 1, BOTH),
            cluster_ip,
        ),
        case(
            Setup::ClusterCidr,
            // An endpoint beside the client would answer it without passing the node.
            Service::new("cluster-ip-from-afar", 2, &[Web1, Web2]),
            probes(
                &[RemoteShell],
                &[ClusterIp],
                Want::Answer(&[Web1, Web2], Source::Own),
            ),
        ),
        case(
            Setup::ClusterCidr,
            Service::new("exposed", 3, BOTH).exposed(),
            external,
        ),
        case(
            Setup::ClusterCidr,
            Service::new("multi-port", 4, BOTH).port(81, 9090),
            multi_port.to_vec(),
        ),
        case(
            Setup::ClusterCidr,
            // Its number is a node port of another Service, which would be masqueraded.
            Service::new("port-like-a-node-port", 13, BOTH).port(node_port(3), 9090),
            vec![
                Probe::new(Shell, ClusterIp, Want::Answer(BOTH, Source::Own))
                    .port(node_port(3), 9090),
            ],
        ),
        case(
            Setup::ClusterCidr,
            // The load balancer itself is the way there; the node must not take the traffic.
            Service::new("ip-mode-proxy", 5, BOTH)
                .exposed()
                .ip_mode("Proxy"),
            probes(&[Client, Shell, Node], &[At::Vip], Want::NoAnswer),
        ),
        case(
            Setup::ClusterCidr,
            Service::new("affinity", 6, BOTH)
                .exposed()
                .with("sessionAffinity", json!("ClientIP"))
                .with("sessionAffinityConfig", sticky),
            {
                let mut sticky = probes(&[Client], &At::EXTERNAL, Want::OneOf(BOTH, Source::Node));
                sticky.extend(probes(
                    &[Shell],
                    &[ClusterIp],
                    Want::OneOf(BOTH, Source::Own),
                ));
                sticky
            },
        ),
        case(
            Setup::ClusterCidr,
            Service::new("hairpin", 7, &[Web1]).exposed(),
            probes(&[Web1], &hairpin_at, Want::Answer(&[Web1], Source::Node)),
        ),
        case(
            Setup::NodePortAddresses,
            Service::new("node-port-addresses", 8, BOTH).exposed(),
            {
                let mut all = probes(&[Client, Shell, Node], &[SecondNodePort], masqueraded);
                all.extend(probes(
                    &[Client, Shell, Node],
                    &[At::NodePort],
                    Want::Refused,
                ));
                all
            },
        ),
    ]
}

/// Nobody is behind the address or the port.
fn nobody() -> Vec<Case> {
    use At::{ClusterIp, ExternalIp, Vip};
    const AS_UPSTREAM: &str =
        "iptables mode redirects only the ports that Services have, as kube-proxy does";
    let everybody = [Client, Remote, Shell, Node];
    let addresses = [ClusterIp, ExternalIp, Vip];
    let mut no_endpoints = probes(&everybody, &[ClusterIp], Want::Refused);
    no_endpoints.extend(probes(&everybody, &At::EXTERNAL, Want::Refused));
    let unknown = probes(&everybody, &addresses, Want::Refused)
        .into_iter()
        .map(|probe| probe.but(Mode::Iptables, Want::NoAnswer, AS_UPSTREAM));
    let ports = unknown
        .clone()
        .flat_map(|probe| [81, HOST_PORT].map(|port| probe.port(port, port)))
        .chain(unknown.map(Probe::ping))
        .collect();
    vec![
        case(
            Setup::ClusterCidr,
            Service::new("no-endpoints", 9, &[]).exposed(),
            no_endpoints,
        ),
        case(
            Setup::ClusterCidr,
            Service::new("unknown-port", 10, BOTH).exposed(),
            ports,
        ),
    ]
}

fn masquerade() -> Vec<Case> {
    use At::ClusterIp;
    let mut all = probes(
        &[Shell, Node, Remote],
        &[ClusterIp],
        Want::Answer(BOTH, Source::Node),
    );
    all.extend(probes(
        &[Client],
        &At::EXTERNAL,
        Want::Answer(BOTH, Source::Node),
    ));
    // Not masqueraded, so the answer has to come back this way by itself.
    let near: &[Host] = &[Web1, Web2];
    vec![
        case(
            Setup::MasqueradeAll,
            Service::new("masquerade-all", 11, BOTH).exposed(),
            all,
        ),
        case(
            Setup::NoDetector,
            Service::new("no-detector", 12, near).exposed(),
            {
                let mut own = probes(
                    &[Shell, Remote, RemoteShell],
                    &[ClusterIp],
                    Want::Answer(near, Source::Own),
                );
                own.push(Probe::new(
                    Node,
                    ClusterIp,
                    Want::Answer(near, Source::Node),
                ));
                own.extend(probes(
                    &[Client, Shell, Node],
                    &At::EXTERNAL,
                    Want::Answer(near, Source::Node),
                ));
                own
            },
        ),
    ]
}
