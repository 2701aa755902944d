// SPDX-License-Identifier: Apache-2.0
//! Notifications of nftables. The kernel sends what each transaction changed, then the number of
//! the new generation.
//!
//! During our own writes we leave the group: sixty thousand notifications would cost more than the
//! write. The generation shows whether another process wrote meanwhile: a write of ours raises it
//! by one for each table.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nft_netlink::{Client, Command, Error, Message};
use tracing::{debug, warn};

use super::Touched;
use crate::telemetry::ErrorChain;
use kpr_core::model::net::IpFamily;
use netlink_pipeline::{Heard, Listener};

// include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h.
const NFNLGRP_NFTABLES: u32 = 7;
const NFT_MSG_DELTABLE: u16 = Message::kind(Command::DeleteTable);
const NFT_MSG_NEWCHAIN: u16 = Message::kind(Command::NewChain);
const NFT_MSG_DELCHAIN: u16 = Message::kind(Command::DeleteChain);
const NFT_MSG_NEWRULE: u16 = Message::kind(Command::NewRule);
const NFT_MSG_DELRULE: u16 = Message::kind(Command::DeleteRule);
const NFT_MSG_NEWGEN: u16 = Message::kind(Command::NewGeneration);
const NFTA_GEN_ID: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;

/// Rules that others put into these chains may stand before our jumps. Those of `POSTROUTING`,
/// where CNI plugins add one for each pod, do not matter.
const SHARED_CHAINS: [&[u8]; 4] = [b"PREROUTING\0", b"INPUT\0", b"FORWARD\0", b"OUTPUT\0"];

/// `struct nfgenmsg`.
const HEADER: usize = 4;

/// From this many chains on, any may have changed.
const MANY: usize = 4_096;

/// The names of all our chains contain it, and so do all jumps to them.
const OURS: &[u8] = b"KUBE-";

/// Watches all families.
#[derive(Debug)]
pub(super) struct NftWatch {
    notifications: Listener,
    client: Client,
    news: News,
}

/// What the notifications said.
#[derive(Debug, Default, PartialEq, Eq)]
struct News {
    /// Families in which rules of ours may have changed.
    changed: BTreeMap<IpFamily, Touched>,
    /// The generations since our last write.
    generations: BTreeSet<u32>,
}

impl News {
    fn all(&mut self) {
        for family in IpFamily::ALL {
            self.any(family);
        }
    }

    fn any(&mut self, family: IpFamily) {
        let touched = self.changed.entry(family).or_default();
        touched.any = true;
        touched.chains.clear();
    }

    fn touch(&mut self, family: IpFamily, payload: &[u8], table: u16, chain: u16) {
        let text = |kind| {
            let attributes = NlasIterator::new(payload.get(HEADER..)?).filter_map(Result::ok);
            let mut wanted = attributes.filter(|attribute| attribute.kind() == kind);
            let value = wanted.next()?.value().to_vec();
            Some(
                String::from_utf8(value)
                    .ok()?
                    .trim_end_matches('\0')
                    .to_owned(),
            )
        };
        let touched = self.changed.entry(family).or_default();
        match text(table).zip(text(chain)) {
            Some(named) if !touched.any && touched.chains.len() < MANY => {
                touched.chains.insert(named);
            }
            _ => self.any(family),
        }
    }

    /// Takes in a notification.
    fn note(&mut self, kind: u16, payload: &[u8]) {
        let family = match payload.first().map(|family| libc::c_int::from(*family)) {
            Some(libc::AF_INET) => Some(IpFamily::V4),
            Some(libc::AF_INET6) => Some(IpFamily::V6),
            _ => None,
        };
        let is_ours = || payload.windows(OURS.len()).any(|bytes| bytes == OURS);
        match (kind, family) {
            (NFT_MSG_NEWGEN, _) => self.generations.extend(generation(payload)),
            (NFT_MSG_DELTABLE, Some(family)) => {
                self.any(family);
                self.changed.entry(family).or_default().is_remade = true;
            }
            (NFT_MSG_NEWCHAIN | NFT_MSG_DELCHAIN, Some(family)) if is_ours() => {
                self.touch(family, payload, NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME);
            }
            (NFT_MSG_NEWRULE | NFT_MSG_DELRULE, Some(family)) if is_ours() => {
                self.touch(family, payload, NFTA_RULE_TABLE, NFTA_RULE_CHAIN);
            }
            (NFT_MSG_NEWRULE, Some(family)) if is_in_shared_chain(payload) => {
                self.touch(family, payload, NFTA_RULE_TABLE, NFTA_RULE_CHAIN);
            }
            _ => {}
        }
    }
}

/// Whether a message is about a rule of a chain that we share with others.
fn is_in_shared_chain(payload: &[u8]) -> bool {
    let attributes = NlasIterator::new(payload.get(HEADER..).unwrap_or_default());
    attributes
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == NFTA_RULE_CHAIN)
        .is_some_and(|chain| SHARED_CHAINS.contains(&chain.value()))
}

/// The number in a message about a generation.
fn generation(payload: &[u8]) -> Option<u32> {
    NlasIterator::new(payload.get(HEADER..)?)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == NFTA_GEN_ID)
        .and_then(|attribute| attribute.value().try_into().ok())
        .map(u32::from_be_bytes)
}

impl NftWatch {
    pub(super) fn open() -> Result<Self, Error> {
        let joined = Listener::join(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES]);
        let what = "listen to changes of nftables";
        Ok(Self {
            notifications: joined.map_err(|source| Error::Netlink { what, source })?,
            client: Client::open()?,
            news: News::default(),
        })
    }

    pub(super) fn before_look(&mut self, family: IpFamily) -> Touched {
        self.listen();
        self.news.changed.remove(&family).unwrap_or_default()
    }

    pub(super) fn has_changed(&mut self, family: IpFamily) -> bool {
        self.listen();
        // Only our own writes need them.
        self.news.generations.clear();
        self.news.changed.contains_key(&family)
    }

    pub(super) fn around_write<E>(
        &mut self,
        tables: usize,
        write: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        self.news.generations.clear();
        let before = self.generation();
        self.switch(false);
        let result = write();
        self.switch(true);
        let after = self.generation();
        self.listen();
        match before.zip(after) {
            Some((before, after)) => {
                let since = |id: u32| id.wrapping_sub(before);
                let heard = self.news.generations.iter();
                let heard = heard.filter(|id| since(**id) <= since(after)).count();
                let unheard = usize::try_from(since(after))
                    .unwrap_or(usize::MAX)
                    .saturating_sub(heard);
                // A write that failed may have written the first tables.
                let is_ours = if result.is_ok() {
                    unheard == tables
                } else {
                    unheard <= tables
                };
                if !is_ours {
                    debug!(unheard, tables, "concurrent write to nftables");
                    self.news.all();
                }
            }
            None => self.news.all(),
        }
        result
    }

    /// Takes in all notifications that have arrived.
    fn listen(&mut self) {
        loop {
            let news = &mut self.news;
            match self
                .notifications
                .receive(None, |kind, data| news.note(kind, data))
            {
                Ok(Heard::Nothing) => return,
                Ok(Heard::Messages) => {}
                Ok(Heard::Lost) => self.news.all(),
                Err(error) => {
                    self.news.all();
                    warn!(error = %ErrorChain(&error), "lost nftables notifications");
                    return;
                }
            }
        }
    }

    /// Joins the group of the notifications or leaves it.
    fn switch(&mut self, join: bool) {
        let result = if join {
            self.notifications.join_group(NFNLGRP_NFTABLES)
        } else {
            self.notifications.leave_group(NFNLGRP_NFTABLES)
        };
        if let Err(error) = result {
            warn!(error = %ErrorChain(&error), "cannot switch nftables notifications");
            self.news.all();
        }
    }

    /// The current generation.
    fn generation(&mut self) -> Option<u32> {
        let generation = self.client.generation().inspect_err(|error| {
            debug!(error = %ErrorChain(error), "cannot read the nftables generation");
        });
        Some(generation.ok()?.id)
    }
}

/// Decodes notifications, for `fuzz/`.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(datagram: &[u8]) {
    if let Some((kind, payload)) = datagram.split_first_chunk() {
        News::default().note(u16::from_ne_bytes(*kind), payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, family: i32, content: &[u8]) -> (u16, Vec<u8>) {
        let header = [u8::try_from(family).unwrap(), 0, 0, 0];
        (kind, [&header, content].concat())
    }

    fn news(messages: &[(u16, Vec<u8>)]) -> News {
        let mut news = News::default();
        for (kind, payload) in messages {
            news.note(*kind, payload);
        }
        news
    }

    #[test]
    fn rules_and_chains_with_our_names_count_in_their_family() {
        let rule = message(NFT_MSG_DELRULE, libc::AF_INET6, b"INPUT KUBE-SERVICES");
        let foreign = message(NFT_MSG_DELRULE, libc::AF_INET, b"INPUT DOCKER");
        let bridge = message(NFT_MSG_NEWRULE, libc::AF_BRIDGE, b"KUBE-SERVICES");
        let families = |news: News| news.changed.into_keys().collect::<Vec<_>>();
        assert_eq!(families(news(&[foreign, bridge, rule])), [IpFamily::V6]);
        let table = message(NFT_MSG_DELTABLE, libc::AF_INET, b"nat");
        assert_eq!(families(news(&[table])), [IpFamily::V4]);
    }

    /// Attributes with these types and texts.
    fn texts(all: &[(u16, &str)]) -> Vec<u8> {
        let mut writer = netlink_pipeline::attribute::Writer::new();
        for (kind, text) in all {
            writer.string(*kind, text);
        }
        writer.finish().unwrap()
    }

    #[test]
    fn notifications_name_table_and_chain() {
        let rule = texts(&[(1, "nat"), (2, "KUBE-SERVICES")]);
        let chain = texts(&[(1, "filter"), (3, "KUBE-FORWARD")]);
        let messages = [
            message(NFT_MSG_DELRULE, libc::AF_INET, &rule),
            message(NFT_MSG_DELCHAIN, libc::AF_INET, &chain),
        ];
        let mut news = news(&messages);
        let touched = news.changed[&IpFamily::V4].clone();
        let named = [("nat", "KUBE-SERVICES"), ("filter", "KUBE-FORWARD")]
            .map(|(table, chain)| (table.to_owned(), chain.to_owned()));
        let expected = Touched {
            chains: named.into(),
            ..Touched::default()
        };
        assert_eq!(touched, expected);
        // What cannot be named may be anything, and is not named afterwards.
        news.note(NFT_MSG_DELRULE, b"\x02\0\0\0KUBE-");
        news.note(messages[0].0, &messages[0].1);
        let any = Touched {
            any: true,
            ..Touched::default()
        };
        assert_eq!(news.changed[&IpFamily::V4], any);
    }

    #[test]
    fn generations_are_counted() {
        // NFTA_GEN_ID = 7, NFTA_GEN_PROC_PID.
        let content = [0, 8, 0, 1, 0, 0, 0, 7, 0, 8, 0, 2, 0, 0, 0, 1];
        let mut native = content;
        native[..2].copy_from_slice(&8_u16.to_ne_bytes());
        native[2..4].copy_from_slice(&1_u16.to_ne_bytes());
        native[8..10].copy_from_slice(&8_u16.to_ne_bytes());
        native[10..12].copy_from_slice(&2_u16.to_ne_bytes());
        let news = news(&[message(NFT_MSG_NEWGEN, 0, &native)]);
        assert_eq!(news.generations, BTreeSet::from([7]));
        assert!(news.changed.is_empty());
    }

    #[test]
    fn broken_messages_say_nothing() {
        let short = (NFT_MSG_DELTABLE, Vec::new());
        let cut = message(NFT_MSG_NEWGEN, 0, &[8, 0]);
        assert_eq!(news(&[short, cut]), News::default());
    }
}
