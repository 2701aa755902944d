// SPDX-License-Identifier: Apache-2.0
//! Tables of nftables that others made: kube-proxy's nftables mode, the CNI plugin `portmap`, and
//! `iptables-nft` where it cannot list its own any more. All of it is rare, so that each call opens
//! its own socket.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};

use nft_netlink::{
    Base, Chain, ChainType, Client, Data, Error, Expression, Family, Hook, Immediate, InvalidName,
    KernelErrorKind, Operation, Rule, Table, TableKey, Verdict,
};

use kpr_core::model::IpFamily;
use kpr_core::plan::leftovers::NFTABLES_TABLE;

/// nftables could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NftablesError {
    #[error(transparent)]
    Nft(#[from] Error),
    #[error("cannot ask about a table or chain of nftables")]
    Name(#[from] InvalidName),
}

/// The table in which the CNI plugin `portmap` publishes ports where it does not use iptables.
const HOST_PORTS: &str = "cni_hostport";

/// What the rules of a chain are known by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedChain {
    /// A digest of the handles. A handle is never used again in the life of a table, and a rule
    /// never changes: as long as the digest is the same, so are the rules.
    pub handles: u64,
    /// The handles of rules that jump, and the chains they jump to.
    pub jumps: Vec<(u64, String)>,
}

/// Whether kube-proxy's table of a family exists. A kernel without nftables has none.
pub fn has_table(family: IpFamily) -> Result<bool, NftablesError> {
    has_named(NFTABLES_TABLE, family)
}

/// Whether the CNI plugin `portmap` publishes ports by nftables. What cannot be asked for is not
/// there.
pub fn publishes_ports() -> bool {
    let has_table = |family| has_named(HOST_PORTS, family).unwrap_or(false);
    IpFamily::ALL.into_iter().any(has_table)
}

fn has_named(table: &str, family: IpFamily) -> Result<bool, NftablesError> {
    let key = key(family, table)?;
    open()?.map_or(Ok(false), |mut client| Ok(client.table(&key)?.is_some()))
}

/// Deletes kube-proxy's table of a family with its contents. One that does not exist is success.
pub fn delete_table(family: IpFamily) -> Result<(), NftablesError> {
    delete(Operation::DeleteTable(key(family, NFTABLES_TABLE)?))
}

/// Deletes a rule. One that does not exist is success.
pub fn delete_rule(
    family: IpFamily,
    table: &str,
    chain: &str,
    handle: u64,
) -> Result<(), NftablesError> {
    let chain = key(family, table)?.chain(chain.parse()?);
    delete(Operation::DeleteRule(chain, handle))
}

fn delete(deletion: Operation) -> Result<(), NftablesError> {
    let Some(mut client) = open()? else {
        return Ok(());
    };
    match client.apply(&[deletion]) {
        Err(error) if !is_absent(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Whether the kernel can translate addresses by rules of nftables: makes a chain for it and
/// deletes it in the same transaction.
pub fn translates(family: IpFamily) -> Result<bool, NftablesError> {
    /// Where `iptables-nft` has its chain `PREROUTING`.
    const PRIORITY: i32 = -100;
    let Some(mut client) = open()? else {
        return Ok(false);
    };
    let probe = key(family, "kube-proxy-rs-probe")?;
    let chain = probe.chain("PREROUTING".parse()?);
    let base = Base::new(ChainType::Nat, Hook::Prerouting, PRIORITY);
    let tried = client.apply(&[
        Operation::AddTable(Table::new(probe.clone())),
        Operation::AddChain(Chain::base(chain, base)),
        Operation::DeleteTable(probe),
    ]);
    match tried {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The chains of a table with their rules; none if there is no such table.
pub fn chains(
    family: IpFamily,
    table: &str,
) -> Result<BTreeMap<String, ListedChain>, NftablesError> {
    let table = key(family, table)?;
    let Some(mut client) = open()? else {
        return Ok(BTreeMap::new());
    };
    let mut listed: BTreeMap<String, (DefaultHasher, ListedChain)> = BTreeMap::new();
    for status in client.chains(&table)? {
        listed.entry(status.chain.key.name.to_string()).or_default();
    }
    let known_by = |rule: &Rule, handle| (rule.chain.name.to_string(), handle, jump_of(rule));
    for (chain, handle, jump) in client.rules_as(&table, known_by)? {
        let (digest, chain) = listed.entry(chain).or_default();
        digest.write_u64(handle);
        chain.jumps.extend(jump.map(|to| (handle, to)));
    }
    let chains = listed.into_iter();
    let chains = chains.map(|(name, (digest, chain))| {
        let handles = digest.finish();
        (name, ListedChain { handles, ..chain })
    });
    Ok(chains.collect())
}

/// The chain that a rule jumps to.
fn jump_of(rule: &Rule) -> Option<String> {
    rule.expressions
        .iter()
        .find_map(|expression| match expression {
            Expression::Immediate(Immediate {
                data: Data::Verdict(Verdict::Jump(to) | Verdict::Goto(to)),
                ..
            }) => Some(to.to_string()),
            _ => None,
        })
}

/// `None` where the kernel has no nftables.
fn open() -> Result<Option<Client>, NftablesError> {
    match Client::open() {
        Ok(client) => Ok(Some(client)),
        Err(Error::NotAvailable(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn key(family: IpFamily, table: &str) -> Result<TableKey, InvalidName> {
    let family = match family {
        IpFamily::V4 => Family::Ipv4,
        IpFamily::V6 => Family::Ipv6,
    };
    Ok(TableKey::new(family, table.parse()?))
}

/// Whether what a transaction is about does not exist: an object, or a type of chain.
fn is_absent(error: &Error) -> bool {
    use KernelErrorKind::{Invalid, NotFound, Unsupported};
    let mut refusals = error.refusals();
    refusals.any(|refusal| matches!(refusal.source.kind, NotFound | Unsupported | Invalid))
}
