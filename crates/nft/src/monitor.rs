// SPDX-License-Identifier: Apache-2.0
//! Notifications of changes.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_pipeline::{Heard, Listener};

use crate::error::Error;
use crate::message::Message;

const NETLINK_NETFILTER: isize = 12;
/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`.
const NFNLGRP_NFTABLES: u32 = 7;

/// Hears of all changes of nftables in this network namespace, its own process's among them.
///
/// Each transaction ends with a message of
/// [`Command::NewGeneration`](crate::Command::NewGeneration), which names the thread that made it.
///
/// ```no_run
/// use std::time::Duration;
/// use nft_netlink::{Heard, Monitor};
///
/// let mut monitor = Monitor::open()?;
/// loop {
///     let heard = monitor.receive(Some(Duration::from_secs(60)), |message| {
///         println!("{:?} in {:?}", message.command, message.table().map(|key| key.to_string()));
///     })?;
///     if heard == Heard::Lost {
///         println!("some changes are not known");
///     }
/// }
/// # #[allow(unreachable_code)]
/// # Ok::<(), nft_netlink::Error>(())
/// ```
#[derive(Debug)]
pub struct Monitor(Listener);

impl Monitor {
    /// Begins to listen. From then on no change is missed unnoticed.
    pub fn open() -> Result<Self, Error> {
        Listener::join(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])
            .map(Self)
            .map_err(|source| Error::Netlink {
                what: "listen to changes of nftables",
                source,
            })
    }

    /// Receives some notifications and hands them over, in the order of the changes. Waits for as
    /// long as `patience` says, or not at all. [`Heard::Lost`] also stands for one that this crate
    /// cannot read.
    pub fn receive(
        &mut self,
        patience: Option<Duration>,
        mut each: impl FnMut(Message),
    ) -> Result<Heard, Error> {
        let mut is_whole = true;
        let heard = self.0.receive(patience, |kind, payload| {
            match Message::parse(kind, payload) {
                Ok(message) => each(message),
                Err(_) => is_whole = false,
            }
        });
        match heard {
            Ok(Heard::Messages) if !is_whole => Ok(Heard::Lost),
            Ok(heard) => Ok(heard),
            Err(source) => Err(Error::Netlink {
                what: "receive changes of nftables",
                source,
            }),
        }
    }
}

/// To wait for notifications together with other things.
impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
