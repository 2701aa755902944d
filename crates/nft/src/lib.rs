// SPDX-License-Identifier: Apache-2.0
#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod chain;
mod client;
mod data;
mod element;
mod error;
mod expression;
mod family;
mod generation;
mod key_type;
mod message;
mod monitor;
mod name;
mod operation;
mod register;
mod rule;
mod set;
mod table;
#[cfg(test)]
mod tests;
mod user_data;
mod wire;

pub use chain::{Base, Chain, ChainAttribute, ChainStatus, ChainType, Hook, HookAttribute, Policy};
pub use client::Client;
pub use data::{Data, Value, Verdict};
pub use element::{
    Element, ElementAttribute, ElementKey, ElementListAttribute, ElementStatus, network,
};
pub use error::{Error, Refusal};
pub use expression::{
    Bitwise, BitwiseOperation, ByteOrder, ByteOrderOperation, Cmp, Comparison, Counter, Ct, CtKey,
    Dynset, DynsetOperation, Expression, Fib, FibResult, Field, Immediate, Limit, LimitKind,
    Lookup, Masquerade, Meta, MetaKey, Nat, NatFamily, NatKind, NetworkBytes, NoTrack,
    ObjectReference, OtherExpression, Payload, PayloadBase, Range, RangeComparison, Redirect,
    Reject, RejectKind, ct_state, fib_flag, nat_flag,
};
pub use family::Family;
pub use generation::{Generation, GenerationAttribute};
pub use key_type::{DataType, KeyType};
pub use message::{Body, Command, Message};
pub use monitor::Monitor;
pub use name::{InvalidName, MAX_NAME_LEN, Name};
// What the types above are made of, so that nothing else is needed to use them.
pub use netlink_pipeline::attribute::{AttributeTooLong, DecodeError, Unknown};
pub use netlink_pipeline::{
    Heard, KernelError, KernelErrorKind, NetlinkError, Request, Socket, SocketStats,
};
pub use operation::{Operation, Place};
pub use register::Register;
pub use rule::{Rule, RuleAttribute, RuleStatus};
pub use set::{Contents, DescriptionAttribute, Set, SetAttribute, SetFlags, SetStatus};
pub use table::{ChainKey, SetKey, Table, TableAttribute, TableKey, TableStatus};
