// SPDX-License-Identifier: Apache-2.0
//! The generation of all rules, which each transaction makes a new one of.

use netlink_pipeline::attribute::DecodeError;
use netlink_pipeline::find_attribute;

use crate::wire::{Nft, missing};

netlink_pipeline::attributes! {
    /// An attribute of a generation.
    pub enum GenerationAttribute {
        /// `NFTA_GEN_ID`
        Id(u32) = 1 NFTA_GEN_ID as Nft,
        /// `NFTA_GEN_PROC_PID`: the thread whose transaction made it.
        Thread(u32) = 2 NFTA_GEN_PROC_PID as Nft,
        /// `NFTA_GEN_PROC_NAME`: that thread's name.
        ThreadName(String) = 3 NFTA_GEN_PROC_NAME as Nft,
    }
}

/// A generation of all tables of a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Generation {
    /// Its number.
    pub id: u32,
    /// In a notification: the thread whose transaction made it. In an answer: the one that asked.
    /// It is the number of the thread (`gettid`), not of its process, in the first PID namespace.
    pub thread: Option<u32>,
    /// That thread's name, which is that of the program unless it was given another.
    pub thread_name: Option<String>,
}

impl Generation {
    /// Reads an answer or a notification.
    pub fn from_attributes(attributes: &[GenerationAttribute]) -> Result<Self, DecodeError> {
        let id =
            find_attribute!(attributes, GenerationAttribute::Id).ok_or(missing("NFTA_GEN_ID"))?;
        Ok(Self {
            id: *id,
            thread: find_attribute!(attributes, GenerationAttribute::Thread).copied(),
            thread_name: find_attribute!(attributes, GenerationAttribute::ThreadName).cloned(),
        })
    }
}
