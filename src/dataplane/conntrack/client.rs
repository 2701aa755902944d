// SPDX-License-Identifier: Apache-2.0
//! Lists and deletes flows.

use netlink_sys::protocols::NETLINK_NETFILTER;
use tracing::debug;

use super::codec::{self, DecodeError, Entry};
use kpr_core::plan::conntrack::flows::{Cleanup, Filter};
use netlink_pipeline::attribute::AttributeTooLong;
use netlink_pipeline::{KernelError, KernelErrorKind, NetlinkError, Socket, SocketStats};

/// Flows could not be cleaned up, or not all of them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot talk to the kernel about flows")]
    Netlink(#[source] NetlinkError),
    /// The kernel lacks ctnetlink, or we lack `CAP_NET_ADMIN`.
    #[error("cannot look at flows (kernel module nf_conntrack_netlink, capability NET_ADMIN)")]
    Unavailable(#[source] KernelError),
    #[error("cannot read the kernel's answer about flows")]
    Malformed(#[from] DecodeError),
    #[error("request about flows is too long")]
    TooLong(#[from] AttributeTooLong),
    #[error("{failed} stale flows were not deleted, {deleted} were")]
    Refused {
        failed: usize,
        deleted: usize,
        /// Of the first one.
        #[source]
        source: KernelError,
    },
}

/// A conversation with connection tracking in this network namespace. Blocking; not shared.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    /// The kernel was seen to list what was not asked for.
    ignores_filters: bool,
}

impl Client {
    /// Opens a socket. Fails where no flow could ever be listed.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(NETLINK_NETFILTER).map_err(Error::Netlink)?;
        Self::over(socket)
    }

    /// The same over a socket that is open already, such as one to a scripted peer.
    pub fn over(mut socket: Socket) -> Result<Self, Error> {
        let answer = socket.get(codec::count()?).map_err(Error::Netlink)?;
        answer.map_err(Error::Unavailable)?;
        Ok(Self {
            socket,
            ignores_filters: false,
        })
    }

    /// What went over the socket so far.
    pub const fn stats(&self) -> SocketStats {
        self.socket.stats()
    }

    /// Deletes the flows that must end and says how many there were.
    pub fn delete_stale(&mut self, cleanup: &Cleanup) -> Result<usize, Error> {
        let family = cleanup.family;
        let mut stale = Vec::new();
        if !self.ignores_filters {
            for filter in cleanup.filters() {
                self.ignores_filters |= !self.list(cleanup, &filter, &mut stale)?;
            }
        }
        if self.ignores_filters {
            stale.clear();
            self.list(cleanup, &Filter::ALL, &mut stale)?;
        }
        let requests: Vec<_> = stale
            .iter()
            .map(|entry| codec::delete(family, entry))
            .collect::<Result<_, _>>()?;
        let verdicts = self.socket.transact(&requests).map_err(Error::Netlink)?;
        let (mut deleted, mut failed, mut first) = (0, 0, None);
        for verdict in verdicts {
            match verdict {
                Ok(()) => deleted += 1,
                // It ended by itself meanwhile.
                Err(error) if error.kind == KernelErrorKind::NotFound => {}
                Err(error) => {
                    failed += 1;
                    first.get_or_insert(error);
                }
            }
        }
        debug!(%family, frontends = cleanup.frontends().len(), deleted, failed, "flows looked at");
        match first {
            Some(source) => Err(Error::Refused {
                failed,
                deleted,
                source,
            }),
            None => Ok(deleted),
        }
    }

    /// Finds stale flows in a part of the table. Says whether only that part was listed.
    fn list(
        &mut self,
        cleanup: &Cleanup,
        filter: &Filter,
        stale: &mut Vec<Entry>,
    ) -> Result<bool, Error> {
        let mut is_filtered = true;
        let mut malformed = None;
        let request = codec::list(cleanup.family, filter)?;
        let dumped =
            self.socket.dump_each(
                request,
                &mut |kind, payload| match codec::entry_of(kind, payload) {
                    Ok(Some(entry)) => {
                        is_filtered &= filter.admits(&entry.flow);
                        if cleanup.is_stale(&entry.flow) {
                            stale.push(entry);
                        }
                    }
                    Ok(None) => is_filtered = false,
                    Err(error) => malformed = Some(error),
                },
            );
        dumped.map_err(Error::Netlink)?;
        match malformed {
            Some(error) => Err(error.into()),
            None => Ok(is_filtered),
        }
    }
}
