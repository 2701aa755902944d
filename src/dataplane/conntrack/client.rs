// SPDX-License-Identifier: Apache-2.0
//! Lists and deletes flows.

use netlink_sys::protocols::NETLINK_NETFILTER;
use tracing::debug;

use super::codec::{self, Entry, EntryFilter, MalformedEntry};
use super::connection::{self, Connection, Wanted};
use kpr_core::model::IpFamily;
use netlink_pipeline::attribute::{AttributeTooLong, DecodeError};
use netlink_pipeline::{KernelError, KernelErrorKind, NetlinkError, Socket, SocketStats};

/// Flows could not be listed or deleted, or not all of them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("netlink exchange about flows failed")]
    Netlink(#[source] NetlinkError),
    /// The kernel lacks ctnetlink, or we lack `CAP_NET_ADMIN`.
    #[error("cannot list flows (kernel module nf_conntrack_netlink, capability NET_ADMIN)")]
    Unavailable(#[source] KernelError),
    #[error("cannot decode the kernel's answer about flows")]
    Malformed(#[from] MalformedEntry),
    /// The same of a connection that was only to be shown.
    #[error("cannot decode the kernel's answer about connections")]
    Undecodable(#[source] DecodeError),
    #[error("request about flows is too long")]
    TooLong(#[from] AttributeTooLong),
    #[error("cannot delete {failed} flows ({deleted} were deleted)")]
    Refused {
        failed: usize,
        deleted: usize,
        /// Why the first of them was not deleted.
        #[source]
        source: KernelError,
    },
}

/// A ctnetlink socket of this network namespace. Blocking; not shared.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    /// The kernel has listed flows that do not match the filter.
    ignores_filters: bool,
}

impl Client {
    /// Opens a socket. Fails if the kernel or our privileges do not let us list flows.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(NETLINK_NETFILTER).map_err(Error::Netlink)?;
        Self::over(socket)
    }

    /// Over a socket that is open already, such as one to a scripted peer in tests.
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

    /// Deletes the UDP flows that `is_selected` selects, and returns how many were deleted.
    ///
    /// The filters together must match all of those flows: they spare listing the others, where the
    /// kernel has filters (Linux 5.8).
    pub fn delete(
        &mut self,
        family: IpFamily,
        filters: &[EntryFilter],
        is_selected: &dyn Fn(&Entry) -> bool,
    ) -> Result<usize, Error> {
        let mut selected = Vec::new();
        if !self.ignores_filters {
            for filter in filters {
                self.ignores_filters |= !self.list(family, filter, is_selected, &mut selected)?;
            }
        }
        if self.ignores_filters {
            selected.clear();
            self.list(family, &EntryFilter::default(), is_selected, &mut selected)?;
        }
        let requests: Vec<_> = selected
            .iter()
            .map(|entry| codec::delete(family, entry))
            .collect::<Result<_, _>>()?;
        let verdicts = self.socket.transact(&requests).map_err(Error::Netlink)?;
        let (mut deleted, mut failed, mut first) = (0, 0, None);
        for verdict in verdicts {
            match verdict {
                Ok(()) => deleted += 1,
                // It has ended by itself.
                Err(error) if error.kind == KernelErrorKind::NotFound => {}
                Err(error) => {
                    failed += 1;
                    first.get_or_insert(error);
                }
            }
        }
        debug!(%family, filters = filters.len(), deleted, failed, "stale flows deleted");
        match first {
            Some(source) => Err(Error::Refused {
                failed,
                deleted,
                source,
            }),
            None => Ok(deleted),
        }
    }

    /// Calls `each` for every connection to a place. The kernel may list others, too, which are
    /// passed over here: all of the family before Linux 5.8, and those of the port with IPv6.
    pub fn connections_to(
        &mut self,
        wanted: &Wanted,
        each: &mut dyn FnMut(Connection),
    ) -> Result<(), Error> {
        let mut malformed = None;
        let request = wanted.request()?;
        let dumped = self
            .socket
            .dump_each(
                request,
                &mut |kind, payload| match connection::read(kind, payload) {
                    Ok(Some(connection)) if wanted.matches(&connection) => each(connection),
                    Ok(_) => {}
                    Err(error) => malformed = Some(error),
                },
            );
        dumped.map_err(Error::Netlink)?;
        malformed.map_or(Ok(()), |error| Err(Error::Undecodable(error)))
    }

    /// Selects among the flows that the filter matches. Returns whether the kernel listed only
    /// those.
    fn list(
        &mut self,
        family: IpFamily,
        filter: &EntryFilter,
        is_selected: &dyn Fn(&Entry) -> bool,
        selected: &mut Vec<Entry>,
    ) -> Result<bool, Error> {
        let asked = filter.asked(family);
        let mut is_filtered = true;
        let mut malformed = None;
        let request = codec::list(family, &asked)?;
        let dumped =
            self.socket.dump_each(
                request,
                &mut |kind, payload| match codec::entry_of(kind, payload) {
                    Ok(Some(entry)) => {
                        is_filtered &= asked.matches(&entry);
                        if filter.matches(&entry) && is_selected(&entry) {
                            selected.push(entry);
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
