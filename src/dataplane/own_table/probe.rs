// SPDX-License-Identifier: Apache-2.0
//! Whether the kernel has what the rules of our table need. A transaction makes a table of its own
//! that sees no packets, and deletes it again.

use kpr_core::model::IpFamily;
use kpr_core::plan::ipvs::nft_rules::{Action, Base, Bits, Hook, Key, Kind, MarkOf, Match, Rule};
use kpr_core::plan::ipvs::set::{SetId, SetType};
use nft_netlink as nft;
use nft_netlink::{Client, Operation, Place, Table, TableKey};

use super::{DORMANT, TableError, encode};

/// What the kernel lacks for a family.
#[derive(Debug, thiserror::Error)]
#[error("the kernel cannot hold the rules of IPVS mode in nftables for {family}: it lacks {what}")]
pub struct Missing {
    pub family: IpFamily,
    /// In words, with the kernel module.
    pub what: &'static str,
    #[source]
    pub source: TableError,
}

/// Makes sure that the kernel can hold our table of a family.
pub fn probe(family: IpFamily) -> Result<(), Missing> {
    let unable = |what: &'static str| {
        move |source| Missing {
            family,
            what,
            source,
        }
    };
    let mut client =
        Client::open().map_err(|error| unable("nftables (nf_tables)")(error.into()))?;
    let (operations, whats) =
        operations(family).map_err(|error| unable("the names of our objects")(error.into()))?;
    match client.apply(&operations) {
        Ok(()) => Ok(()),
        Err(error) => {
            let first = error
                .refusals()
                .filter_map(|refusal| refusal.operation)
                .min();
            let what = first.and_then(|first| whats.get(first)).copied();
            Err(unable(what.unwrap_or("nftables (nf_tables)"))(error.into()))
        }
    }
}

/// The operations, and what the kernel lacks if it refuses each.
#[expect(clippy::too_many_lines, reason = "it is a list")]
fn operations(family: IpFamily) -> Result<(Vec<Operation>, Vec<&'static str>), nft::InvalidName> {
    let key = TableKey::new(
        encode::table(family)?.family,
        format!("kube-proxy-rs-probe-{}", std::process::id()).parse()?,
    );
    let mut made = Vec::new();
    let table = Table {
        key: key.clone(),
        flags: DORMANT,
    };
    let of_family = match family {
        IpFamily::V4 => "nftables for IPv4 (nf_tables, CONFIG_NF_TABLES_IPV4)",
        IpFamily::V6 => "nftables for IPv6 (nf_tables, CONFIG_NF_TABLES_IPV6)",
    };
    made.push((Operation::AddTable(table), of_family));
    for (set_type, what) in [
        (SetType::HashIpPort, "sets (nf_tables)"),
        (SetType::HashIpPortMark, "maps (nf_tables)"),
        (
            SetType::HashIpPortNet,
            "sets of concatenated ranges (Linux 5.6)",
        ),
    ] {
        let ids = SetId::ALL.into_iter();
        for id in ids.filter(|id| id.set_type() == set_type).take(1) {
            let mut set = encode::set(family, &id.name(family), set_type)?;
            set.key.table = key.clone();
            made.push((Operation::AddSet(set), what));
        }
    }
    let bases = [
        (
            Kind::Filter,
            Hook::Input,
            "chains of type filter (nf_tables)",
        ),
        (
            Kind::Route,
            Hook::Output,
            "chains of type route (nft_chain_route)",
        ),
        (
            Kind::Nat,
            Hook::Postrouting,
            "address translation (nft_chain_nat, nf_nat)",
        ),
        (
            Kind::Nat,
            Hook::Prerouting,
            "address translation (nft_chain_nat, nf_nat)",
        ),
    ];
    let mark = |of| Match::Mark {
        of,
        mask: 1,
        value: 1,
        is: true,
    };
    let accept = |condition| (vec![condition], Action::Accept);
    let bits = Bits { keep: 0, flip: 1 };
    let rules = [
        (
            Hook::Input,
            (vec![Match::New], Action::Reject),
            "a match of connection states or rejecting (nft_ct, nft_reject)",
        ),
        (
            Hook::Input,
            accept(Match::SourceLocal(true)),
            "a match of the node's own addresses (nft_fib, nft_fib_ipv4, nft_fib_ipv6)",
        ),
        (
            Hook::Input,
            accept(mark(MarkOf::Connection)),
            "marks of connections (nft_ct, CONFIG_NF_CONNTRACK_MARK)",
        ),
        (
            Hook::Input,
            accept(Match::In(SetId::ClusterIp, Key::Destination)),
            "a match of sets (nf_tables)",
        ),
        (
            Hook::Input,
            (vec![], Action::SaveAndMapMark(SetId::LocalPolicyMark, bits)),
            "marks from maps (nf_tables, nft_ct)",
        ),
        (
            Hook::Postrouting,
            (vec![], Action::Masquerade { random: true }),
            "masquerading (nft_masq)",
        ),
        (
            Hook::Prerouting,
            (vec![], Action::Keep),
            "translation of destinations (nft_nat)",
        ),
    ];
    for (kind, hook, what) in bases {
        let chain = key.chain(format!("{kind:?}-{hook:?}").to_lowercase().parse()?);
        let base = Base {
            kind,
            hook,
            priority: 100,
        };
        let base = Some(encode::base(base));
        let key = chain.clone();
        made.push((Operation::AddChain(nft::Chain { key, base }), what));
        for (of, (matches, action), what) in &rules {
            if *of != hook {
                continue;
            }
            let rule = Rule {
                matches: matches.clone(),
                action: *action,
                comment: None,
            };
            let rule = nft::Rule::new(chain.clone(), encode::steps(family, &rule)?);
            made.push((Operation::AddRule(rule, Place::Last), what));
        }
    }
    made.push((Operation::DeleteTable(key), "transactions (nf_tables)"));
    Ok(made.into_iter().unzip())
}
