// SPDX-License-Identifier: Apache-2.0
//! Differences that are meant. Each is a row of a table in `docs/design/differences.md`, and a test
//! holds it to that.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};

use super::objects::{Kind, Service};
use super::probe::{At, Difference, Fate, Probe, REFUSED, TIMED_OUT, has};
use super::side::Contestant;
use crate::topology::{Family, Host};

/// Who is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pair {
    /// kube-proxy and ours, both in iptables mode.
    Iptables,
    /// kube-proxy and ours, both in IPVS mode.
    Ipvs,
    /// Ours in iptables mode and in IPVS mode.
    Modes,
}

impl Pair {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Iptables => "kube_proxy_and_ours_in_iptables_mode",
            Self::Ipvs => "kube_proxy_and_ours_in_ipvs_mode",
            Self::Modes => "both_of_our_modes",
        }
    }

    /// Left and right.
    pub const fn contestants(self) -> [Contestant; 2] {
        let (left, right) = match self {
            Self::Iptables => ((false, "iptables"), (true, "iptables")),
            Self::Ipvs => ((false, "ipvs"), (true, "ipvs")),
            Self::Modes => ((true, "iptables"), (true, "ipvs")),
        };
        [
            Contestant {
                is_ours: left.0,
                mode: left.1,
            },
            Contestant {
                is_ours: right.0,
                mode: right.1,
            },
        ]
    }

    /// Whether a table is about these two.
    fn has(self, table: Table) -> bool {
        match self {
            Self::Iptables => matches!(table, Table::Iptables | Table::Both),
            Self::Ipvs => matches!(table, Table::Ipvs | Table::Both),
            Self::Modes => table == Table::Modes,
        }
    }
}

/// A table of `docs/design/differences.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Iptables,
    Ipvs,
    Both,
    Modes,
}

impl Table {
    const fn heading(self) -> &'static str {
        match self {
            Self::Iptables => "Where we differ from kube-proxy in iptables mode",
            Self::Ipvs => "Where we differ from kube-proxy in IPVS mode",
            Self::Both => "Where we differ from kube-proxy in both modes",
            Self::Modes => "Differences between our two modes",
        }
    }
}

/// A difference with what it depends on.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    pub difference: &'a Difference,
    pub services: &'a BTreeMap<u8, Service>,
}

/// A difference that is meant.
#[derive(Clone, Copy, Debug)]
pub struct Exception {
    pub table: Table,
    /// The first cell of its row.
    pub case: &'static str,
    is_met: fn(Situation<'_>) -> bool,
}

impl Situation<'_> {
    /// The Service that is asked, if it exists.
    fn service(&self) -> Option<&Service> {
        self.services.get(&self.difference.probe.n)
    }

    fn left_is(&self, words: &str) -> bool {
        is(&self.difference.left, words)
    }

    fn right_is(&self, words: &str) -> bool {
        is(&self.difference.right, words)
    }

    fn right_answers(&self) -> bool {
        self.difference
            .right
            .iter()
            .all(|words| words.starts_with("answered"))
    }

    fn from(&self) -> Host {
        self.difference.probe.from
    }

    fn at(&self) -> At {
        self.difference.probe.at
    }

    fn is_external(&self) -> bool {
        !matches!(self.at(), At::ClusterIp | At::HealthCheck)
    }

    fn is_from_pod_or_node(&self) -> bool {
        self.from() == Host::Node || self.from().node().is_some()
    }

    fn service_is(&self, what: fn(&Service) -> bool) -> bool {
        self.service().is_some_and(what)
    }

    /// Whether any Service has this address and port.
    fn is_frontend(&self) -> bool {
        let probe = self.difference.probe;
        self.services.values().any(|service| {
            let is_it = |at: At, port: &super::objects::Port| {
                let other = Probe {
                    n: service.n,
                    at,
                    port: port.number,
                    protocol: port.protocol,
                    ..probe
                };
                other.protocol == probe.protocol && other.to() == probe.to() && has(service, at)
            };
            service.families.contains(&probe.family)
                && At::ALL
                    .iter()
                    .any(|at| service.ports.iter().any(|port| is_it(*at, port)))
        })
    }

    fn has_no_local_endpoints(&self) -> bool {
        let endpoints = self.endpoints();
        endpoints.iter().all(|host| host.node() != Some(Host::Node))
    }

    /// Hosts that could be given a connection in this family, wherever they are.
    fn endpoints(&self) -> BTreeSet<Host> {
        let family = self.difference.probe.family;
        let Some(service) = self.service() else {
            return BTreeSet::new();
        };
        let slices = service.slices.iter().filter(|slice| slice.family == family);
        let endpoints = slices.flat_map(|slice| &slice.endpoints);
        // `publishNotReadyAddresses` is a matter of the controller, which then calls them ready.
        let usable = endpoints.filter(|it| it.ready || it.serving);
        usable.map(|it| it.host).collect()
    }
}

fn is(fate: &Fate, words: &str) -> bool {
    fate.len() == 1 && fate.contains(words)
}

pub const ALL: &[Exception] = &[
    Exception {
        table: Table::Both,
        case: "slices that disagree about an endpoint",
        is_met: |it| {
            it.service()
                .is_some_and(|service| service.disagrees(it.difference.probe.family))
        },
    },
    Exception {
        table: Table::Iptables,
        case: "no endpoints, external address, from the node",
        is_met: |it| {
            it.from() == Host::Node
                && it.is_external()
                && it.endpoints().is_empty()
                && it.left_is(TIMED_OUT)
                && it.right_is(REFUSED)
        },
    },
    Exception {
        table: Table::Iptables,
        case: "source ranges hold the node",
        is_met: |it| {
            it.from() == Host::Node
                && it.at() == At::Vip
                && it.service_is(|service| {
                    service.source_ranges.iter().any(|range| {
                        range.starts_with("172.20.0.10/") || range.starts_with("fd00:20::a/")
                    })
                })
                && it.left_is(TIMED_OUT)
                && it.right_answers()
        },
    },
    Exception {
        table: Table::Iptables,
        case: "a node port on `[::1]`, policy Local without local endpoints",
        is_met: |it| {
            it.at() == At::Localhost
                && it.difference.probe.family == Family::V6
                && it.service_is(|service| service.is_external_local)
                && it.has_no_local_endpoints()
                && it.left_is(TIMED_OUT)
                && it.right_is(REFUSED)
        },
    },
    Exception {
        table: Table::Ipvs,
        case: "a Local traffic policy without local endpoints",
        is_met: |it| {
            it.service_is(|service| service.is_external_local || service.is_internal_local)
                && it.has_no_local_endpoints()
                && it.right_is(TIMED_OUT)
        },
    },
    Exception {
        table: Table::Ipvs,
        case: "external policy Local, client is a pod or the node",
        is_met: |it| {
            it.service_is(|service| service.is_external_local)
                && it.is_external()
                && it.is_from_pod_or_node()
                && it.right_answers()
        },
    },
    Exception {
        table: Table::Ipvs,
        case: "node ports",
        is_met: |it| it.at() == At::Localhost || (it.at().is_on_node() && !it.is_frontend()),
    },
    Exception {
        table: Table::Ipvs,
        case: "health-check port at a Service's address",
        is_met: |it| {
            let probe = it.difference.probe;
            !probe.at.is_on_node()
                && probe.port == Service::health_check_port(probe.n)
                && it.right_is(REFUSED)
        },
    },
    Exception {
        table: Table::Modes,
        case: "a port that the Service does not have, or a ping",
        is_met: |it| {
            !it.at().is_on_node()
                && !it.is_frontend()
                && it.left_is(TIMED_OUT)
                && it.right_is(REFUSED)
        },
    },
    Exception {
        table: Table::Modes,
        case: "node port on 127.0.0.1",
        is_met: |it| {
            it.at() == At::Localhost
                && it.difference.probe.family == Family::V4
                && it.service_is(|service| {
                    service.kind == Kind::NodePort || service.kind == Kind::LoadBalancer
                })
        },
    },
];

/// The exception that a difference is, if it is one.
pub fn excuse(pair: Pair, situation: Situation<'_>) -> Option<&'static Exception> {
    ALL.iter()
        .find(|exception| pair.has(exception.table) && (exception.is_met)(situation))
}

/// Each exception is a row of its table.
pub fn are_documented() -> Result<()> {
    let text = include_str!("../../../../docs/design/differences.md");
    for exception in ALL {
        let section = exception.table.heading();
        let (_, rest) = text
            .split_once(&format!("\n## {section}\n"))
            .with_context(|| format!("docs/design/differences.md has no section {section:?}"))?;
        let end = rest.find("\n## ").unwrap_or(rest.len());
        let row = format!("\n| {} | ", exception.case);
        ensure!(
            rest[..end].contains(&row),
            "{section:?} has no row {:?}",
            exception.case
        );
    }
    Ok(())
}
