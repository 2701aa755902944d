// SPDX-License-Identifier: Apache-2.0
//! A message of `nf_tables`: `struct nfgenmsg` and attributes.

use netlink_pipeline::Request;
use netlink_pipeline::attribute::{
    AttributeTooLong, DecodeError, ListAttribute, Unknown, Writer, list,
};
use netlink_pipeline::find_attribute;

use crate::chain::ChainAttribute;
use crate::element::ElementListAttribute;
use crate::family::Family;
use crate::generation::GenerationAttribute;
use crate::rule::RuleAttribute;
use crate::set::SetAttribute;
use crate::table::{TableAttribute, TableKey};

/// `NFNL_SUBSYS_NFTABLES` of `linux/netfilter/nfnetlink.h`: the upper byte of a message's type.
pub(crate) const NFNL_SUBSYS_NFTABLES: u8 = 10;

/// Bytes of `struct nfgenmsg`: family, version, resource id.
const NFGENMSG_LEN: usize = 4;

netlink_pipeline::numbered! {
    /// What a message is about: `enum nf_tables_msg_types`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Command: u8 {
        /// `NFT_MSG_NEWTABLE`
        NewTable = 0,
        /// `NFT_MSG_GETTABLE`
        GetTable = 1,
        /// `NFT_MSG_DELTABLE`
        DeleteTable = 2,
        /// `NFT_MSG_NEWCHAIN`
        NewChain = 3,
        /// `NFT_MSG_GETCHAIN`
        GetChain = 4,
        /// `NFT_MSG_DELCHAIN`
        DeleteChain = 5,
        /// `NFT_MSG_NEWRULE`
        NewRule = 6,
        /// `NFT_MSG_GETRULE`
        GetRule = 7,
        /// `NFT_MSG_DELRULE`
        DeleteRule = 8,
        /// `NFT_MSG_NEWSET`
        NewSet = 9,
        /// `NFT_MSG_GETSET`
        GetSet = 10,
        /// `NFT_MSG_DELSET`
        DeleteSet = 11,
        /// `NFT_MSG_NEWSETELEM`
        NewElements = 12,
        /// `NFT_MSG_GETSETELEM`
        GetElements = 13,
        /// `NFT_MSG_DELSETELEM`
        DeleteElements = 14,
        /// `NFT_MSG_NEWGEN`
        NewGeneration = 15,
        /// `NFT_MSG_GETGEN`
        GetGeneration = 16,
        /// `NFT_MSG_DESTROYTABLE`: as deletion, but one that does not exist is success (Linux 6.3).
        DestroyTable = 26,
        /// `NFT_MSG_DESTROYCHAIN`
        DestroyChain = 27,
        /// `NFT_MSG_DESTROYRULE`
        DestroyRule = 28,
        /// `NFT_MSG_DESTROYSET`
        DestroySet = 29,
        /// `NFT_MSG_DESTROYSETELEM`
        DestroyElements = 30,
    }
}

/// A request to `nf_tables`, an answer or a notification of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is about.
    pub command: Command,
    /// The family of the table.
    pub family: Family,
    /// Of answers: the lower half of the generation's number.
    pub resource: u16,
    /// Its attributes, in their order.
    pub body: Body,
}

macro_rules! bodies {
    ($($(#[$doc:meta])* $body:ident($attribute:ty): $($command:ident)|*,)*) => {
        /// The attributes of a message.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Body {
            $($(#[$doc])* $body(Vec<$attribute>),)*
            /// Of something that this crate does not decode.
            Other(Vec<Unknown>),
        }

        impl Body {
            fn read(command: Command, attributes: &[u8]) -> Result<Self, DecodeError> {
                Ok(match command {
                    $($(Command::$command)|* => {
                        Self::$body(<$attribute>::read_all(attributes)?)
                    })*
                    Command::Other(_) => {
                        let raw = list(attributes).map(|raw| Ok(raw?.to_unknown()));
                        Self::Other(raw.collect::<Result<_, _>>()?)
                    }
                })
            }

            fn write(&self, writer: &mut Writer) {
                match self {
                    $(Self::$body(attributes) => {
                        for attribute in attributes {
                            attribute.write(writer);
                        }
                    })*
                    Self::Other(attributes) => {
                        for attribute in attributes {
                            attribute.write(writer);
                        }
                    }
                }
            }
        }

        $(impl From<Vec<$attribute>> for Body {
            fn from(attributes: Vec<$attribute>) -> Self {
                Self::$body(attributes)
            }
        })*
    };
}

bodies! {
    /// Of a table.
    Table(TableAttribute): NewTable | GetTable | DeleteTable | DestroyTable,
    /// Of a chain.
    Chain(ChainAttribute): NewChain | GetChain | DeleteChain | DestroyChain,
    /// Of a rule.
    Rule(RuleAttribute): NewRule | GetRule | DeleteRule | DestroyRule,
    /// Of a set or map.
    Set(SetAttribute): NewSet | GetSet | DeleteSet | DestroySet,
    /// Of elements.
    Elements(ElementListAttribute):
        NewElements | GetElements | DeleteElements | DestroyElements,
    /// Of a generation.
    Generation(GenerationAttribute): NewGeneration | GetGeneration,
}

impl Message {
    /// A request.
    pub fn new(command: Command, family: Family, body: impl Into<Body>) -> Self {
        Self {
            command,
            family,
            resource: 0,
            body: body.into(),
        }
    }

    /// The netlink message type of a command.
    pub const fn kind(command: Command) -> u16 {
        u16::from_be_bytes([NFNL_SUBSYS_NFTABLES, command.number()])
    }

    /// What follows the netlink header.
    pub fn payload(&self) -> Result<Vec<u8>, AttributeTooLong> {
        let mut writer = header(self.family, self.resource);
        self.body.write(&mut writer);
        writer.finish()
    }

    /// The request with flags of its own, such as `NLM_F_CREATE`.
    pub(crate) fn request(&self, flags: u16) -> Result<Request, AttributeTooLong> {
        Ok(Request {
            kind: Self::kind(self.command),
            flags,
            payload: self.payload()?,
        })
    }

    /// Reads a message. `payload` is what follows the netlink header.
    pub fn parse(kind: u16, payload: &[u8]) -> Result<Self, DecodeError> {
        let [subsystem, command] = kind.to_be_bytes();
        if subsystem != NFNL_SUBSYS_NFTABLES {
            return Err(DecodeError::Kind { kind });
        }
        let ([family, _version, high, low], attributes) = payload
            .split_first_chunk::<NFGENMSG_LEN>()
            .ok_or(DecodeError::Short)?;
        let command = Command::from_number(command);
        Ok(Self {
            command,
            family: Family::from_number(*family),
            resource: u16::from_be_bytes([*high, *low]),
            body: Body::read(command, attributes)?,
        })
    }

    /// The table that it is about; `None` for a generation and what is not decoded.
    pub fn table(&self) -> Option<TableKey> {
        let name = match &self.body {
            Body::Table(attributes) => find_attribute!(attributes, TableAttribute::Name),
            Body::Chain(attributes) => find_attribute!(attributes, ChainAttribute::Table),
            Body::Rule(attributes) => find_attribute!(attributes, RuleAttribute::Table),
            Body::Set(attributes) => find_attribute!(attributes, SetAttribute::Table),
            Body::Elements(attributes) => {
                find_attribute!(attributes, ElementListAttribute::Table)
            }
            Body::Generation(_) | Body::Other(_) => None,
        };
        name.map(|name| TableKey::new(self.family, name.clone()))
    }
}

/// `struct nfgenmsg`
pub(crate) fn header(family: Family, resource: u16) -> Writer {
    let [high, low] = resource.to_be_bytes();
    Writer::after(&[family.number(), 0, high, low])
}
