// SPDX-License-Identifier: Apache-2.0
//! One rule for both modes and for flows: who gets an address and port.

use std::net::SocketAddr;

use super::*;
use crate::model::testing::{endpoint, service, service_name, slice, tracker};
use crate::model::{Event, IpFamily, Protocol, Service, ServiceView, Tracker};
use crate::plan::conntrack::flows::{Flow, Flows};
use crate::plan::iptables;
use crate::plan::ipvs;
use crate::plan::mode::Planner as _;
use crate::plan::ruleset::{ChainName, Table};
use crate::plan::testing::fake::FakeKernel;
use crate::plan::testing::{context, udp};

/// An address of the node, with a port that may be a node port.
const PLACE: &str = "192.168.0.10:30080";

/// A Service that claims the place, and its endpoint.
fn claimant(name: &str, n: u8, by: Right, created: i64) -> (Service, String) {
    let own = format!("10.96.0.{n}");
    let service = service(name).created(created).cluster_ips(&[&own]);
    let at = |service: Service, port| service.named_port("", Protocol::Udp, port);
    let service = match by {
        Right::ClusterIp => at(service, 30_080).cluster_ips(&["192.168.0.10"]),
        Right::LoadBalancer => at(service, 30_080).vip("192.168.0.10"),
        Right::NodePort => at(service, 80).node_port(30_080),
        Right::ExternalIp => at(service, 30_080).external_ip("192.168.0.10"),
    };
    (service, format!("10.1.0.{n}"))
}

/// What one proxy of each mode makes of the changes.
struct Proxies {
    tracker: Tracker,
    ipvs: ipvs::Planner,
    iptables: iptables::Planner,
    flows: Flows,
}

impl Proxies {
    fn new() -> Self {
        let context = context(IpFamily::V4);
        Self {
            tracker: tracker(vec![], vec![]),
            flows: Flows::new(IpFamily::V4, context.node_port_addresses.clone()),
            ipvs: ipvs::Planner::new(context.clone()).unwrap(),
            iptables: iptables::Planner::new(context),
        }
    }

    fn take_in(&mut self, events: Vec<Event>) {
        for event in events {
            self.tracker.apply(event);
        }
        for name in self.tracker.take().services {
            let view = ServiceView::of(&self.tracker, &name, IpFamily::V4);
            self.ipvs.update(&view, &self.tracker);
            self.iptables.update(&view, &self.tracker);
            self.flows.update(&view);
        }
    }

    /// Who gets packets to the place, in the words of each: the Service of the virtual server, that
    /// of the rule, and which endpoints may answer.
    fn winners(&self, endpoints: &[(&str, String)]) -> [String; 3] {
        let of_ipvs = self.ipvs.desired().claims().winner(&udp(PLACE));
        let of_ipvs = of_ipvs.map(ToString::to_string).unwrap_or_default();
        let mut kernel = FakeKernel::new(iptables::State::default());
        assert!(kernel.apply(&self.iptables.plan()).is_success());
        let rules = |chain: &str| {
            let chain = ChainName::new(chain).unwrap();
            let rules = kernel.state.rules.rules(Table::Nat, &chain);
            rules.map(<[_]>::to_vec).unwrap_or_default()
        };
        let of_address = rules("KUBE-SERVICES").into_iter();
        let mut of_address = of_address.filter(|rule| rule.as_str().contains("-d 192.168.0.10/32"));
        let rule = of_address
            .next()
            .or_else(|| rules("KUBE-NODEPORTS").into_iter().next());
        assert_eq!(of_address.next(), None);
        let names = endpoints.iter().map(|(name, _)| *name);
        let rule = rule
            .map(|rule| rule.as_str().to_owned())
            .unwrap_or_default();
        let of_rules = names.filter(|name| rule.contains(*name)).collect();
        let place: SocketAddr = PLACE.parse().unwrap();
        let cleanup = self.flows.due().unwrap();
        let may_answer = |address: &String| {
            !cleanup.is_stale(&Flow {
                destination: place,
                answerer: format!("{address}:53").parse().unwrap(),
            })
        };
        let answering = endpoints.iter().filter(|(_, address)| may_answer(address));
        let of_flows = answering.map(|(name, _)| *name).collect();
        [of_ipvs, of_rules, of_flows]
    }
}

#[test]
fn the_better_right_wins_whatever_the_age_and_order_in_both_modes() {
    let rights = [
        Right::ClusterIp,
        Right::LoadBalancer,
        Right::NodePort,
        Right::ExternalIp,
    ];
    let cases = rights
        .iter()
        .enumerate()
        .flat_map(|(index, better)| rights[index..].iter().map(move |worse| (*better, *worse)));
    for (better, worse) in cases {
        // Of equal right the older one has it.
        let created = if better == worse { 50 } else { 200 };
        let (winner, of_winner) = claimant("ns/z-winner", 1, better, created);
        let (loser, of_loser) = claimant("ns/a-loser", 2, worse, 100);
        let to = |name: &str, address: &str| {
            let slice = slice(name, "a", vec![endpoint(address)]);
            Event::SliceApplied(slice.named_port("", Protocol::Udp, 53))
        };
        let winning = vec![
            to("ns/z-winner", &of_winner),
            Event::ServiceApplied(winner.clone()),
        ];
        let losing = vec![to("ns/a-loser", &of_loser), Event::ServiceApplied(loser)];
        let endpoints = [("ns/z-winner", of_winner.clone()), ("ns/a-loser", of_loser)];
        let case = format!("{better:?} before {worse:?}");
        for winner_first in [false, true] {
            let mut proxies = Proxies::new();
            let (first, second) = if winner_first {
                (winning.clone(), losing.clone())
            } else {
                (losing.clone(), winning.clone())
            };
            proxies.take_in(first);
            proxies.take_in(second);
            assert_eq!(proxies.winners(&endpoints), ["ns/z-winner"; 3], "{case}");
            let conflicts = proxies.ipvs.conflicts();
            assert_eq!(
                conflicts.len(),
                if better == worse && better == Right::NodePort {
                    2
                } else {
                    1
                },
                "{case}"
            );
            let of_ipvs = conflicts.first().unwrap();
            assert_eq!(of_ipvs.by, (better != worse).then_some(better), "{case}");
            // Rules of addresses and of node ports lie in different trees.
            if worse != Right::NodePort || better == Right::NodePort {
                let conflicts = proxies.iptables.conflicts();
                let conflict = conflicts.first().unwrap();
                assert_eq!(conflicts.len(), 1, "{case}");
                assert_eq!(
                    (&conflict.winner, &conflict.loser),
                    (&of_ipvs.winner, &of_ipvs.loser)
                );
                assert_eq!(conflict.by, of_ipvs.by, "{case}");
            }
            // What the winner leaves is the loser's.
            proxies.take_in(vec![Event::ServiceDeleted(service_name("ns/z-winner"))]);
            assert_eq!(proxies.winners(&endpoints), ["ns/a-loser"; 3], "{case}");
            assert!(proxies.iptables.conflicts().is_empty());
            proxies.take_in(vec![Event::ServiceApplied(winner.clone())]);
            assert_eq!(proxies.winners(&endpoints), ["ns/z-winner"; 3], "{case}");
        }
    }
}
