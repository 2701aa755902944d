// SPDX-License-Identifier: Apache-2.0
//! Whether another program changed our tables. The kernel sends what each transaction changed, then
//! the number of the new generation.
//!
//! A transaction of ours is for one generation and makes the next one, so its number is known.

use std::collections::BTreeSet;

use kpr_core::model::IpFamily;
use nft_netlink::{Body, Error, Generation, Heard as Received, Message, Monitor};

use super::encode;

/// See the module.
#[derive(Debug)]
pub(super) struct Heard {
    monitor: Monitor,
    /// Our tables that the transaction changes whose end was not heard of yet.
    open: BTreeSet<IpFamily>,
    /// Generations that we made.
    ours: BTreeSet<u32>,
    /// Our tables that others may have changed.
    suspects: BTreeSet<IpFamily>,
    was_lost: bool,
    /// The last generation of which the kernel told.
    last: Option<u32>,
}

impl Heard {
    pub(super) fn open() -> Result<Self, Error> {
        Ok(Self {
            monitor: Monitor::open()?,
            open: BTreeSet::new(),
            ours: BTreeSet::new(),
            suspects: BTreeSet::new(),
            was_lost: false,
            last: None,
        })
    }

    /// A generation is ours.
    pub(super) fn made(&mut self, generation: u32) {
        self.ours.insert(generation);
    }

    /// Any table may have been changed.
    pub(super) fn doubt(&mut self) {
        self.suspects.extend(IpFamily::ALL);
    }

    /// What others changed until now is known, or about to be read.
    pub(super) fn forget(&mut self, family: IpFamily) {
        self.suspects.remove(&family);
    }

    /// Whether others may have changed our table since the last [`Self::forget`].
    pub(super) fn suspects(&self, family: IpFamily) -> bool {
        self.suspects.contains(&family)
    }

    /// The last generation that was heard of since this was last asked.
    pub(super) fn take_last(&mut self) -> Option<u32> {
        self.last.take()
    }

    /// Takes in what was sent until now. Returns whether some of it was lost.
    pub(super) fn listen(&mut self) -> Result<bool, Error> {
        loop {
            let mut messages = Vec::new();
            let received = self.monitor.receive(None, |message| messages.push(message));
            for message in messages {
                self.note(&message);
            }
            match received? {
                Received::Messages => {}
                Received::Lost => self.was_lost = true,
                Received::Nothing => break,
            }
        }
        if !std::mem::take(&mut self.was_lost) {
            return Ok(false);
        }
        // The ends of transactions may be among it.
        self.ours.clear();
        self.open.clear();
        Ok(true)
    }

    fn note(&mut self, message: &Message) {
        if let Body::Generation(attributes) = &message.body {
            let made = Generation::from_attributes(attributes).ok();
            let made = made.map(|made| made.id);
            self.last = made.or(self.last);
            let is_ours = made.is_some_and(|made| self.ours.remove(&made));
            let changed = std::mem::take(&mut self.open);
            if !is_ours {
                self.suspects.extend(changed);
            }
            return;
        }
        let Some(table) = message.table() else {
            return;
        };
        let ours = IpFamily::ALL
            .into_iter()
            .filter(|family| encode::table(*family).is_ok_and(|ours| ours == table));
        self.open.extend(ours);
    }
}
