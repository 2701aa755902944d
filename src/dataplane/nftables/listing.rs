// SPDX-License-Identifier: Apache-2.0
//! What is in a table of nftables, as far as it must be known where iptables cannot list it:
//! chains, and of rules what identifies them and where they jump to.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{NFT_MSG_DELTABLE, NFTA_TABLE_NAME, NftablesError};
use super::{address_family, is_absent, kind, nfgenmsg, transact};
use kpr_core::model::IpFamily;
use netlink_pipeline::attribute::{self, Attribute, AttributeTooLong, DecodeError, Writer};
use netlink_pipeline::{KernelErrorKind, NetlinkError, Request, Socket};

// include/uapi/linux/netfilter/nf_tables.h.
const NFT_MSG_NEWTABLE: u16 = kind(0);
const NFT_MSG_NEWCHAIN: u16 = kind(3);
const NFT_MSG_GETCHAIN: u16 = kind(4);
const NFT_MSG_GETRULE: u16 = kind(7);
const NFT_MSG_DELRULE: u16 = kind(8);
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CHAIN: u16 = 2;

/// `NLM_F_CREATE`.
const CREATE: u16 = 0x400;

/// What the rules of a chain are known by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedChain {
    /// A digest of the handles. A handle is never used again in the life of a table, and a rule
    /// never changes: as long as the digest is the same, so are the rules.
    pub handles: u64,
    /// The handles of rules that jump, and the chains they jump to.
    pub jumps: Vec<(u64, String)>,
}

/// The chains of a table with their rules; none if there is no such table.
pub fn chains(
    family: IpFamily,
    table: &str,
) -> Result<BTreeMap<String, ListedChain>, NftablesError> {
    let mut socket = Socket::open(NETLINK_NETFILTER)?;
    let mut listed: BTreeMap<String, (DefaultHasher, ListedChain)> = BTreeMap::new();
    let of_family = Writer::after(&nfgenmsg(address_family(family)));
    let request = request(NFT_MSG_GETCHAIN, 0, of_family)?;
    for chain in dump(&mut socket, request, |payload| chain_of(payload, table))? {
        listed.insert(chain, <(DefaultHasher, ListedChain)>::default());
    }
    let mut of_table = Writer::after(&nfgenmsg(address_family(family)));
    of_table.string(NFTA_RULE_TABLE, table);
    let request = self::request(NFT_MSG_GETRULE, 0, of_table)?;
    for rule in dump(&mut socket, request, |payload| rule_of(payload, table))? {
        let (digest, chain) = listed.entry(rule.chain).or_default();
        digest.write_u64(rule.handle);
        chain.jumps.extend(rule.jump.map(|to| (rule.handle, to)));
    }
    let chains = listed.into_iter();
    let chains = chains.map(|(name, (digest, chain))| {
        let handles = digest.finish();
        (name, ListedChain { handles, ..chain })
    });
    Ok(chains.collect())
}

/// Deletes a rule. One that does not exist is success.
pub fn delete_rule(
    family: IpFamily,
    table: &str,
    chain: &str,
    handle: u64,
) -> Result<(), NftablesError> {
    let mut rule = Writer::after(&nfgenmsg(address_family(family)));
    rule.string(NFTA_RULE_TABLE, table)
        .string(NFTA_RULE_CHAIN, chain)
        .bytes(NFTA_RULE_HANDLE, &handle.to_be_bytes());
    match transact(&[request(NFT_MSG_DELRULE, 0, rule)?])? {
        Err(source) if source.kind != KernelErrorKind::NotFound => Err(NftablesError::Refused {
            family,
            table: table.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Whether the kernel can translate addresses by rules of nftables: makes a chain for it and
/// deletes it in the same transaction.
pub fn translates(family: IpFamily) -> Result<bool, NftablesError> {
    const PROBE: &str = "kube-proxy-rs-probe";
    /// Where `iptables-nft` has its chain `PREROUTING`.
    const PRIORITY: i32 = -100;
    let header = nfgenmsg(address_family(family));
    let (mut table, mut chain, mut end) = (
        Writer::after(&header),
        Writer::after(&header),
        Writer::after(&header),
    );
    table.string(NFTA_TABLE_NAME, PROBE);
    chain
        .string(NFTA_CHAIN_TABLE, PROBE)
        .string(NFTA_CHAIN_NAME, "PREROUTING")
        .nested(NFTA_CHAIN_HOOK, |hook| {
            hook.u32_be(NFTA_HOOK_HOOKNUM, 0)
                .bytes(NFTA_HOOK_PRIORITY, &PRIORITY.to_be_bytes());
        })
        .string(NFTA_CHAIN_TYPE, "nat");
    end.string(NFTA_TABLE_NAME, PROBE);
    let requests = [
        request(NFT_MSG_NEWTABLE, CREATE, table)?,
        request(NFT_MSG_NEWCHAIN, CREATE, chain)?,
        request(NFT_MSG_DELTABLE, 0, end)?,
    ];
    match transact(&requests)? {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(source) => Err(NftablesError::Refused {
            family,
            table: PROBE.to_owned(),
            source,
        }),
    }
}

fn request(kind: u16, flags: u16, payload: Writer) -> Result<Request, AttributeTooLong> {
    Ok(Request {
        kind,
        flags,
        payload: payload.finish()?,
    })
}

/// A dump of what `read` takes from its messages. What does not exist is empty.
fn dump<T>(
    socket: &mut Socket,
    request: Request,
    read: impl Fn(&[u8]) -> Result<Option<T>, DecodeError>,
) -> Result<Vec<T>, NftablesError> {
    let answers = match socket.dump_as(request, |_kind, payload| read(payload)) {
        Ok(answers) => answers,
        Err(NetlinkError::Refused(error)) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let answers: Result<Vec<Option<T>>, _> = answers.into_iter().collect();
    Ok(answers?.into_iter().flatten().collect())
}

/// The attributes behind the header of a message.
fn attributes(payload: &[u8]) -> impl Iterator<Item = Result<Attribute<'_>, DecodeError>> {
    attribute::list(payload.get(nfgenmsg(0).len()..).unwrap_or_default())
}

/// The name in a message about a chain, if it is of this table.
fn chain_of(payload: &[u8], table: &str) -> Result<Option<String>, DecodeError> {
    let (mut name, mut is_of_table) = (None, false);
    for attribute in attributes(payload) {
        let attribute = attribute?;
        match attribute.kind() {
            NFTA_CHAIN_TABLE => is_of_table = attribute.string() == table,
            NFTA_CHAIN_NAME => name = Some(attribute.string()),
            _ => {}
        }
    }
    Ok(name.filter(|_| is_of_table))
}

#[derive(Debug, PartialEq, Eq)]
struct ListedRule {
    chain: String,
    handle: u64,
    jump: Option<String>,
}

/// The rule of a message, if it is of this table.
fn rule_of(payload: &[u8], table: &str) -> Result<Option<ListedRule>, DecodeError> {
    let (mut chain, mut handle, mut jump, mut is_of_table) = (None, 0, None, false);
    for attribute in attributes(payload) {
        let attribute = attribute?;
        match attribute.kind() {
            NFTA_RULE_TABLE => is_of_table = attribute.string() == table,
            NFTA_RULE_CHAIN => chain = Some(attribute.string()),
            NFTA_RULE_HANDLE => handle = u64::from_be_bytes(attribute.array("NFTA_RULE_HANDLE")?),
            NFTA_RULE_EXPRESSIONS => jump = jump_of(attribute.value())?,
            _ => {}
        }
    }
    let chain = chain.filter(|_| is_of_table);
    Ok(chain.map(|chain| ListedRule {
        chain,
        handle,
        jump,
    }))
}

/// The chain that a rule with these expressions jumps to.
fn jump_of(expressions: &[u8]) -> Result<Option<String>, DecodeError> {
    for expression in attribute::list(expressions) {
        let expression = expression?.value();
        let Some(name) = inner(expression, NFTA_EXPR_NAME)? else {
            continue;
        };
        if name.string() != "immediate" {
            continue;
        }
        let mut found = Some(expression);
        for kind in [NFTA_EXPR_DATA, NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT] {
            let next = found.map_or(Ok(None), |list| inner(list, kind))?;
            found = next.map(|attribute| attribute.value());
        }
        let to = found.map_or(Ok(None), |list| inner(list, NFTA_VERDICT_CHAIN))?;
        if let Some(to) = to {
            return Ok(Some(to.string()));
        }
    }
    Ok(None)
}

/// The first attribute of this kind.
fn inner(list: &[u8], kind: u16) -> Result<Option<Attribute<'_>>, DecodeError> {
    for attribute in attribute::list(list) {
        let attribute = attribute?;
        if attribute.kind() == kind {
            return Ok(Some(attribute));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(table: &str, fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::after(&nfgenmsg(2));
        writer
            .string(NFTA_RULE_TABLE, table)
            .string(NFTA_RULE_CHAIN, "PREROUTING")
            .bytes(NFTA_RULE_HANDLE, &7_u64.to_be_bytes())
            .nested(NFTA_RULE_EXPRESSIONS, fill);
        writer.finish().unwrap()
    }

    fn expression(list: &mut Writer, name: &str, fill: impl FnOnce(&mut Writer)) {
        list.nested(1, |expression| {
            expression
                .string(NFTA_EXPR_NAME, name)
                .nested(NFTA_EXPR_DATA, fill);
        });
    }

    #[test]
    fn a_jump_is_found_among_expressions() {
        let payload = rule("nat", |list| {
            expression(list, "counter", |data| {
                data.bytes(2, &[0; 8]);
            });
            expression(list, "immediate", |data| {
                data.u32_be(1, 0).nested(NFTA_IMMEDIATE_DATA, |data| {
                    data.nested(NFTA_DATA_VERDICT, |verdict| {
                        verdict
                            .u32_be(1, 0)
                            .string(NFTA_VERDICT_CHAIN, "KUBE-SERVICES");
                    });
                });
            });
        });
        let found = ListedRule {
            chain: "PREROUTING".into(),
            handle: 7,
            jump: Some("KUBE-SERVICES".into()),
        };
        assert_eq!(rule_of(&payload, "nat").unwrap(), Some(found));
        assert_eq!(rule_of(&payload, "filter").unwrap(), None);
    }

    #[test]
    fn a_rule_without_a_jump_has_a_handle() {
        let payload = rule("nat", |list| {
            expression(list, "masq", |_| {});
        });
        let found = rule_of(&payload, "nat").unwrap().unwrap();
        assert_eq!((found.handle, found.jump), (7, None));
    }

    #[test]
    fn broken_messages_are_errors() {
        let whole = rule("nat", |list| expression(list, "masq", |_| {}));
        assert!(rule_of(&whole[..whole.len() - 3], "nat").is_err());
        assert_eq!(chain_of(&[], "nat"), Ok(None));
    }
}
