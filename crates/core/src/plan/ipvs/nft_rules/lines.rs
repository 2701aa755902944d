// SPDX-License-Identifier: Apache-2.0
//! PURE: the rules of each chain.

use super::{Action, Bits, Chain, Context, Key, LocalDetector, MarkOf, MarkRange, Match, Rule};
use super::{SetId, loopback};
use crate::plan::ipvs::pass;

fn when(matches: impl IntoIterator<Item = Match>, action: Action) -> Rule {
    Rule {
        matches: matches.into_iter().collect(),
        action,
        comment: None,
    }
}

/// A rule with one set, and the comment that rules with this set have.
fn noted(set: SetId, key: Key, action: Action) -> Rule {
    of_set(set, [Match::In(set, key)], action)
}

/// A rule with the comment that rules with a set have.
fn of_set(set: SetId, matches: impl IntoIterator<Item = Match>, action: Action) -> Rule {
    Rule {
        comment: Some(set.comment().to_owned()),
        ..when(matches, action)
    }
}

/// The first packet only: adding a range does not affect open connections.
fn firewall() -> Rule {
    let set = SetId::LoadBalancerFw;
    let matches = [Match::New, Match::In(set, Key::Destination)];
    of_set(set, matches, Action::Jump(Chain::SourceRanges))
}

pub(super) struct Lines<'a> {
    pub(super) context: &'a Context,
}

impl Lines<'_> {
    pub(super) fn rules(&self, chain: Chain) -> Vec<Rule> {
        let to = |chain| when([], Action::Jump(chain));
        match chain {
            Chain::MarkMasquerade => vec![when([], self.mark_masquerade())],
            Chain::LoadBalancer => vec![
                noted(SetId::LoadBalancerLocal, Key::Destination, Action::Return),
                to(Chain::MarkMasquerade),
            ],
            Chain::NodePort => vec![
                noted(SetId::NodePortLocal, Key::Destination, Action::Return),
                noted(
                    SetId::NodePort,
                    Key::Destination,
                    Action::Jump(Chain::MarkMasquerade),
                ),
            ],
            Chain::Services => self.services(),
            Chain::PolicyMarks => self.policy_marks(),
            Chain::Pass => {
                let mark = Action::SetMark(self.marks().pass());
                let rule = |set| noted(set, Key::Destination, mark);
                pass::SETS.map(rule).to_vec()
            }
            Chain::SourceRanges => vec![
                noted(
                    SetId::LoadBalancerSourceCidr,
                    Key::DestinationAndSource,
                    Action::Return,
                ),
                noted(
                    SetId::LoadBalancerSourceIp,
                    Key::DestinationAndSource,
                    Action::Return,
                ),
                when([], Action::Drop),
            ],
            Chain::Unserved => unserved(),
            Chain::AfterIpvs => self.after_ipvs(),
            Chain::Prerouting | Chain::OutputServices => vec![to(Chain::Services)],
            Chain::OutputMark => vec![
                when([self.exact_mark()], Action::Jump(Chain::AfterIpvs)),
                firewall(),
                to(Chain::PolicyMarks),
                self.no_local_endpoints(),
            ],
            // In the order in which iptables has the jumps.
            Chain::InputFilter => vec![
                to(Chain::Unserved),
                firewall(),
                noted(SetId::HealthCheckNodePort, Key::TcpPort, Action::Accept),
            ],
            Chain::InputMark => {
                let mut rules = self.saved_mark();
                rules.extend([to(Chain::PolicyMarks), self.no_local_endpoints()]);
                rules
            }
            Chain::ForwardFilter => vec![firewall()],
            Chain::Postrouting => self.postrouting(),
        }
    }

    fn marks(&self) -> MarkRange {
        MarkRange::beside(self.context.masquerade_mark)
    }

    fn mark_masquerade(&self) -> Action {
        Action::Mark(Bits::set(self.context.masquerade_mark))
    }

    /// The packet has a mark of [`Self::policy_marks`], whatever bits others have set, or not.
    fn policy_mark(&self, of: MarkOf, is: bool) -> Match {
        let marker = self.marks().marker();
        Match::Mark {
            of,
            mask: marker,
            value: marker,
            is,
        }
    }

    /// It has such a mark without any bit of others.
    fn exact_mark(&self) -> Match {
        Match::Mark {
            of: MarkOf::Packet,
            mask: self.marks().mask(),
            value: self.marks().value(),
            is: true,
        }
    }

    /// Whether a packet is from a local pod; `None` if that cannot be told.
    fn pod_source(&self, is: bool) -> Option<Match> {
        match &self.context.local_detector {
            LocalDetector::Cidr(cidr) => Some(Match::Source(*cidr, is)),
            LocalDetector::BridgeInterface(name) => Some(Match::Interface(name.clone(), is)),
            LocalDetector::InterfacePrefix(prefix) => {
                Some(Match::InterfacePrefix(prefix.clone(), is))
            }
            LocalDetector::None => None,
        }
    }

    /// Of packets to a cluster IP only those that are not from a local pod are masqueraded; if
    /// local traffic cannot be detected, only those that the node itself sends from the cluster IP.
    fn cluster_ip_masquerade(&self) -> Rule {
        let set = SetId::ClusterIp;
        let to_mark = Action::Jump(Chain::MarkMasquerade);
        if self.context.masquerade_all {
            return noted(set, Key::Destination, to_mark);
        }
        match self.pod_source(false) {
            Some(others) => of_set(set, [others, Match::In(set, Key::Destination)], to_mark),
            None => noted(set, Key::SourceAndPort, to_mark),
        }
    }

    fn services(&self) -> Vec<Rule> {
        let keep_if = |set, condition| {
            let matches = [Match::In(set, Key::Destination), condition];
            of_set(set, matches, Action::Keep)
        };
        let keep = |set| when([Match::In(set, Key::Destination)], Action::Keep);
        let marked = SetId::LocalPolicyMark;
        // Others may have set bits since the mark was set in OUTPUT.
        let own = [
            self.policy_mark(MarkOf::Packet, true),
            Match::SourceLocal(true),
        ];
        let mut rules = vec![of_set(marked, own, Action::MapMark(marked))];
        let loopback = loopback(self.context.family);
        rules.extend(loopback.map(|net| when([Match::Source(net, true)], Action::Return)));
        rules.extend([
            noted(
                SetId::LoadBalancer,
                Key::Destination,
                Action::Jump(Chain::LoadBalancer),
            ),
            self.cluster_ip_masquerade(),
            noted(
                SetId::ExternalIp,
                Key::Destination,
                Action::Jump(Chain::MarkMasquerade),
            ),
            keep_if(SetId::ExternalIp, Match::SourceLocal(false)),
            keep_if(SetId::ExternalIp, Match::DestinationLocal(true)),
            keep_if(SetId::ExternalIpLocal, Match::SourceLocal(false)),
            keep_if(SetId::ExternalIpLocal, Match::DestinationLocal(true)),
            when(
                [Match::DestinationLocal(true)],
                Action::Jump(Chain::NodePort),
            ),
            keep(SetId::ClusterIp),
            keep(SetId::LoadBalancer),
        ]);
        rules
    }

    /// Whose packets get marks.
    fn marked_sources(&self) -> impl Iterator<Item = Match> {
        let pods = self.pod_source(true).into_iter();
        pods.chain([Match::SourceLocal(true)])
    }

    /// Pods and the node reach all endpoints of a Service whose external policy is Local. Their
    /// packets use the virtual server of the mark, which the kernel tries before that of the
    /// address.
    fn policy_marks(&self) -> Vec<Rule> {
        let set = SetId::LocalPolicyMark;
        let mut rules: Vec<Rule> = self
            .marked_sources()
            .map(|from| of_set(set, [from], Action::MapMark(set)))
            .collect();
        rules.extend([Match::SynAck, Match::Datagram].map(|answer| Rule {
            comment: Some(pass::COMMENT.to_owned()),
            ..when([answer, Match::Answer], Action::Jump(Chain::Pass))
        }));
        rules
    }

    /// The kernel compares the whole mark. Bits that others have set until here wait in the
    /// connection's mark, if that is not in use.
    fn saved_mark(&self) -> Vec<Rule> {
        let set = SetId::LocalPolicyMark;
        let others = !self.marks().marker();
        let foreign = Match::Mark {
            of: MarkOf::Packet,
            mask: others,
            value: 0,
            is: false,
        };
        let unused = Match::Mark {
            of: MarkOf::Connection,
            mask: u32::MAX,
            value: 0,
            is: true,
        };
        let saved = Bits {
            keep: others,
            flip: self.marks().marker(),
        };
        self.marked_sources()
            .map(|from| {
                let matches = [foreign.clone(), unused.clone(), from];
                of_set(set, matches, Action::SaveAndMapMark(set, saved))
            })
            .collect()
    }

    /// The packet comes from IPVS, translated: nobody behind it shall see our mark, but the bits
    /// that it had before.
    fn after_ipvs(&self) -> Vec<Rule> {
        let is_saved = || self.policy_mark(MarkOf::Connection, true);
        let only = |keep| Bits { keep, flip: 0 };
        let others = !self.marks().marker();
        vec![
            when([], Action::Mark(only(self.marks().foreign()))),
            when([is_saved()], Action::RestoreMark(only(others))),
            when([is_saved()], Action::ForgetMark),
            // Until now there was no room for the bit.
            when(
                [Match::New, Match::SourceLocal(true)],
                self.mark_masquerade(),
            ),
        ]
    }

    /// There are endpoints, but the policy admits none. Packets with the mark are not affected.
    fn no_local_endpoints(&self) -> Rule {
        let set = SetId::NoLocalEndpoints;
        let matches = [
            Match::New,
            self.policy_mark(MarkOf::Packet, false),
            Match::In(set, Key::Destination),
        ];
        of_set(set, matches, Action::Drop)
    }

    fn postrouting(&self) -> Vec<Rule> {
        let random = Action::Masquerade { random: true };
        let bit = self.context.masquerade_mark;
        let unmarked = Match::Mark {
            of: MarkOf::Packet,
            mask: bit,
            value: bit,
            is: false,
        };
        vec![
            // What the node sends to itself stays as it is.
            of_set(
                SetId::LoopBack,
                [Match::ToItself, Match::DestinationLocal(false)],
                Action::Masquerade { random: false },
            ),
            // The node's own packets to endpoints on this node: `after-ipvs` sees the others.
            when([self.exact_mark(), Match::SourceLocal(true)], random),
            when([unmarked], Action::Return),
            // Cleared again, so that a packet that passes here twice is not masqueraded twice.
            when(
                [],
                Action::Mark(Bits {
                    keep: u32::MAX,
                    flip: bit,
                }),
            ),
            Rule {
                comment: Some("kubernetes service traffic requiring SNAT".to_owned()),
                ..when([], random)
            },
        ]
    }
}

/// Ports of the host must not be reachable through an address of a Service.
fn unserved() -> Vec<Rule> {
    let served = |set| when([Match::In(set, Key::Destination)], Action::Return);
    vec![
        served(SetId::LoadBalancer),
        served(SetId::ClusterIp),
        served(SetId::ExternalIp),
        served(SetId::ExternalIpLocal),
        // Balancers that pass packets through probe at the address that they balance.
        noted(SetId::HealthCheckVip, Key::Destination, Action::Return),
        refusal(),
    ]
}

/// Rejects packets to an address on our link that are for no Service.
pub(super) fn refusal() -> Rule {
    let bound = Match::In(SetId::IpvsIps, Key::Address);
    when([Match::New, bound], Action::Reject)
}
