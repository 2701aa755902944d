// SPDX-License-Identifier: Apache-2.0
//! Chains.

use std::fmt;

use netlink_pipeline::attribute::{Attribute, DecodeError, Unknown, Writer};
use netlink_pipeline::find_attribute;

use crate::family::Family;
use crate::name::Name;
use crate::table::{ChainKey, TableKey};
use crate::wire::{Nft, Wire, missing, numbers_on_the_wire};

netlink_pipeline::attributes! {
    /// An attribute of a chain.
    pub enum ChainAttribute {
        /// `NFTA_CHAIN_TABLE`
        Table(Name) = 1 NFTA_CHAIN_TABLE as Nft,
        /// `NFTA_CHAIN_HANDLE`
        Handle(u64) = 2 NFTA_CHAIN_HANDLE as Nft,
        /// `NFTA_CHAIN_NAME`
        Name(Name) = 3 NFTA_CHAIN_NAME as Nft,
        /// `NFTA_CHAIN_HOOK`: of base chains.
        Hook(Vec<HookAttribute>) = 4 NFTA_CHAIN_HOOK,
        /// `NFTA_CHAIN_POLICY`: of base chains.
        Policy(Policy) = 5 NFTA_CHAIN_POLICY as Nft,
        /// `NFTA_CHAIN_USE`: rules in it and jumps to it.
        Use(u32) = 6 NFTA_CHAIN_USE as Nft,
        /// `NFTA_CHAIN_TYPE`: of base chains.
        Type(ChainType) = 7 NFTA_CHAIN_TYPE as Nft,
        /// `NFTA_CHAIN_COUNTERS`: what fell to the policy; not decoded.
        Counters(Unknown) = 8 NFTA_CHAIN_COUNTERS,
        /// `NFTA_CHAIN_FLAGS`: `enum nft_chain_flags`.
        Flags(u32) = 10 NFTA_CHAIN_FLAGS as Nft,
        /// `NFTA_CHAIN_ID`: its number in the transaction that creates it.
        Id(u32) = 11 NFTA_CHAIN_ID as Nft,
        /// `NFTA_CHAIN_USERDATA`: comment and others of `nft`.
        UserData(Vec<u8>) = 12 NFTA_CHAIN_USERDATA as Nft,
    }
}

netlink_pipeline::attributes! {
    /// An attribute of the place of a base chain.
    pub enum HookAttribute {
        /// `NFTA_HOOK_HOOKNUM`
        Number(Hook) = 1 NFTA_HOOK_HOOKNUM as Nft,
        /// `NFTA_HOOK_PRIORITY`
        Priority(i32) = 2 NFTA_HOOK_PRIORITY as Nft,
        /// `NFTA_HOOK_DEV`: of chains of one device.
        Device(String) = 3 NFTA_HOOK_DEV as Nft,
        /// `NFTA_HOOK_DEVS`: of chains of several devices; not decoded.
        Devices(Unknown) = 4 NFTA_HOOK_DEVS,
    }
}

netlink_pipeline::numbered! {
    /// A place in the way of a packet (`enum nf_inet_hooks`). In tables of one device, zero is
    /// where packets come in.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Hook: u32 {
        /// All packets that come in, before routing.
        Prerouting = 0,
        /// Those for this machine.
        Input = 1,
        /// Those for others.
        Forward = 2,
        /// Those that this machine sends.
        Output = 3,
        /// All packets that go out.
        Postrouting = 4,
    }
}

netlink_pipeline::numbered! {
    /// What becomes of packets that no rule of a base chain decides on.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Policy: u32 {
        /// They are dropped.
        Drop = 0,
        /// They go on.
        Accept = 1,
    }
}

numbers_on_the_wire!(Hook, Policy);

/// What the rules of a base chain may do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ChainType {
    /// Filter.
    Filter,
    /// Translate addresses. Only the first packet of a connection comes here.
    Nat,
    /// Change what routing depends on, in [`Hook::Output`].
    Route,
    /// A type that this crate does not know.
    Other(String),
}

impl ChainType {
    /// What the kernel calls it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for ChainType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Wire for ChainType {
    fn read(raw: &Attribute<'_>, _name: &'static str) -> Result<Self, DecodeError> {
        Ok(match raw.string() {
            name if name == "filter" => Self::Filter,
            name if name == "nat" => Self::Nat,
            name if name == "route" => Self::Route,
            name => Self::Other(name),
        })
    }

    fn write(&self, kind: u16, writer: &mut Writer) {
        writer.string(kind, self.as_str());
    }
}

/// What makes a chain a base chain: packets come to it by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// What its rules may do.
    pub chain_type: ChainType,
    /// Where in the way of a packet it is.
    pub hook: Hook,
    /// Its place among the chains of a hook, lowest first.
    pub priority: i32,
    /// What becomes of packets that no rule decides on. A new chain accepts.
    pub policy: Option<Policy>,
    /// Of tables of one device: its name.
    pub device: Option<String>,
}

impl Base {
    /// A base chain that accepts what no rule decides on.
    pub const fn new(chain_type: ChainType, hook: Hook, priority: i32) -> Self {
        Self {
            chain_type,
            hook,
            priority,
            policy: Some(Policy::Accept),
            device: None,
        }
    }
}

/// A chain of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Which chain.
    pub key: ChainKey,
    /// `None` for a chain to which packets come by jumps only.
    pub base: Option<Base>,
}

impl Chain {
    /// A chain for jumps.
    pub const fn regular(key: ChainKey) -> Self {
        Self { key, base: None }
    }

    /// A base chain.
    pub const fn base(key: ChainKey, base: Base) -> Self {
        Self {
            key,
            base: Some(base),
        }
    }

    /// What describes it on the wire.
    pub fn to_attributes(&self) -> Vec<ChainAttribute> {
        let mut attributes = self.key.to_attributes();
        if let Some(base) = &self.base {
            attributes.push(ChainAttribute::Type(base.chain_type.clone()));
            attributes.extend(base.policy.map(ChainAttribute::Policy));
            let mut hook = vec![
                HookAttribute::Number(base.hook),
                HookAttribute::Priority(base.priority),
            ];
            hook.extend(base.device.clone().map(HookAttribute::Device));
            attributes.push(ChainAttribute::Hook(hook));
        }
        attributes
    }
}

impl ChainKey {
    pub(crate) fn to_attributes(&self) -> Vec<ChainAttribute> {
        vec![
            ChainAttribute::Table(self.table.name.clone()),
            ChainAttribute::Name(self.name.clone()),
        ]
    }
}

/// What the kernel says of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChainStatus {
    /// What would create it.
    pub chain: Chain,
    /// The kernel's number of it.
    pub handle: Option<u64>,
    /// Rules in it and jumps to it.
    pub uses: u32,
}

impl ChainStatus {
    /// Reads the answer about a chain of a family.
    pub fn from_attributes(
        family: Family,
        attributes: &[ChainAttribute],
    ) -> Result<Self, DecodeError> {
        let table = find_attribute!(attributes, ChainAttribute::Table)
            .ok_or(missing("NFTA_CHAIN_TABLE"))?;
        let name =
            find_attribute!(attributes, ChainAttribute::Name).ok_or(missing("NFTA_CHAIN_NAME"))?;
        let hook = find_attribute!(attributes, ChainAttribute::Hook);
        let base = hook.map(|hook| {
            let chain_type =
                find_attribute!(attributes, ChainAttribute::Type).ok_or(missing("NFTA_CHAIN_TYPE"));
            let number = find_attribute!(hook, HookAttribute::Number);
            let priority = find_attribute!(hook, HookAttribute::Priority);
            Ok(Base {
                chain_type: chain_type?.clone(),
                hook: *number.ok_or(missing("NFTA_HOOK_HOOKNUM"))?,
                priority: *priority.ok_or(missing("NFTA_HOOK_PRIORITY"))?,
                policy: find_attribute!(attributes, ChainAttribute::Policy).copied(),
                device: find_attribute!(hook, HookAttribute::Device).cloned(),
            })
        });
        let uses = find_attribute!(attributes, ChainAttribute::Use).copied();
        Ok(Self {
            chain: Chain {
                key: TableKey::new(family, table.clone()).chain(name.clone()),
                base: base.transpose()?,
            },
            handle: find_attribute!(attributes, ChainAttribute::Handle).copied(),
            uses: uses.unwrap_or_default(),
        })
    }
}
