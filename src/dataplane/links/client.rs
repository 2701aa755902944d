// SPDX-License-Identifier: Apache-2.0
//! Asks the kernel about links and addresses, and changes them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;
use tracing::info;

use super::{Address, AddressFailure, Gateway, Link, LinkError, Operation, codec};
use kpr_core::model::net::IpFamily;
use netlink_pipeline::{
    KernelError, KernelErrorKind, NetlinkError, Reply, Request, Socket, SocketStats,
};

/// A conversation with route netlink of this network namespace. Blocking; not shared.
#[derive(Debug)]
pub struct Links {
    socket: Socket,
}

impl Links {
    pub fn open() -> Result<Self, LinkError> {
        Socket::open(NETLINK_ROUTE)
            .map(Self::over)
            .map_err(LinkError::Netlink)
    }

    /// Over a socket that is open already, such as one to a scripted peer.
    pub const fn over(socket: Socket) -> Self {
        Self { socket }
    }

    /// What went over the socket so far.
    pub const fn stats(&self) -> SocketStats {
        self.socket.stats()
    }

    /// All links, in the order of their index.
    pub fn list(&mut self) -> Result<Vec<Link>, LinkError> {
        let replies = self.dump(codec::list_links(), Operation::ListLinks, "")?;
        let mut links = Vec::with_capacity(replies.len());
        for reply in &replies {
            links.extend(codec::link_of(reply)?);
        }
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// The link of a name, if there is one.
    pub fn find(&mut self, name: &str) -> Result<Option<Link>, LinkError> {
        match self
            .socket
            .get(codec::find_link(name))
            .map_err(LinkError::Netlink)?
        {
            Ok(replies) => {
                for reply in &replies {
                    if let Some(link) = codec::link_of(reply)? {
                        return Ok(Some(link));
                    }
                }
                Ok(None)
            }
            Err(error) if error.kind == KernelErrorKind::NotFound => Ok(None),
            Err(error) => Err(refused(Operation::FindLink, name, error)),
        }
    }

    /// The dummy link of a name; created if there is none. It is never switched on: its addresses are local without that,
    /// and it does not answer ARP for them.
    pub fn ensure_dummy(&mut self, name: &str) -> Result<Link, LinkError> {
        let found = self.find(name)?;
        let created = found.is_none();
        let link = if let Some(link) = found {
            link
        } else {
            self.create_dummy(name)?;
            self.find(name)?.ok_or_else(|| LinkError::Vanished {
                name: name.to_owned(),
            })?
        };
        if link.kind.as_deref() != Some("dummy") {
            return Err(LinkError::NotDummy {
                name: name.to_owned(),
                kind: link.kind.unwrap_or_else(|| "physical".to_owned()),
            });
        }
        if created {
            info!(link = name, index = link.index, "dummy link created");
        }
        Ok(link)
    }

    fn create_dummy(&mut self, name: &str) -> Result<(), LinkError> {
        match self.execute(codec::create_dummy(name))? {
            // Somebody else was faster.
            Err(error) if error.kind == KernelErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(refused(Operation::CreateLink, name, error)),
            Ok(()) => Ok(()),
        }
    }

    /// Deletes a link with its addresses. One that is not there is success.
    pub fn delete(&mut self, index: u32) -> Result<(), LinkError> {
        match self.execute(codec::delete_link(index))? {
            Err(error) if error.kind == KernelErrorKind::NotFound => Ok(()),
            Err(error) => Err(refused(Operation::DeleteLink, &index.to_string(), error)),
            Ok(()) => Ok(()),
        }
    }

    /// Deletes the dummy link of a name with its addresses. One that is not there is success; one of another kind stays.
    pub fn delete_dummy(&mut self, name: &str) -> Result<(), LinkError> {
        match self.find(name)? {
            Some(link) if link.kind.as_deref() == Some("dummy") => self.delete(link.index),
            Some(link) => Err(LinkError::NotDummy {
                name: name.to_owned(),
                kind: link.kind.unwrap_or_else(|| "physical".to_owned()),
            }),
            None => Ok(()),
        }
    }

    /// The addresses of one link, both families. A link that is not there has none.
    pub fn addresses_of(&mut self, link: u32) -> Result<Vec<Address>, LinkError> {
        match self.addresses_where(Some(link)) {
            Err(LinkError::Refused { source, .. }) if source.kind == KernelErrorKind::NotFound => {
                Ok(Vec::new())
            }
            other => other,
        }
    }

    /// All addresses of the node, both families.
    pub fn addresses(&mut self) -> Result<Vec<Address>, LinkError> {
        self.addresses_where(None)
    }

    fn addresses_where(&mut self, link: Option<u32>) -> Result<Vec<Address>, LinkError> {
        let name = link.map(|index| index.to_string()).unwrap_or_default();
        let replies = self.dump(codec::list_addresses(link), Operation::ListAddresses, &name)?;
        let mut addresses = Vec::with_capacity(replies.len());
        for reply in &replies {
            // Kernels that do not know the filter answer with all.
            addresses.extend(
                codec::address_of(reply)?
                    .filter(|address| link.is_none_or(|link| address.link == link)),
            );
        }
        addresses.sort();
        Ok(addresses)
    }

    /// Adds host addresses to a link, all in one go. Those that are there already are success. Returned are those that the
    /// kernel refused.
    pub fn add_addresses(
        &mut self,
        link: u32,
        addresses: &[IpAddr],
    ) -> Result<Vec<AddressFailure>, LinkError> {
        self.change(addresses, KernelErrorKind::AlreadyExists, |ip| {
            codec::add_address(link, ip)
        })
    }

    /// Deletes host addresses from a link, all in one go. Those that are not there are success. Returned are those that
    /// the kernel refused.
    pub fn delete_addresses(
        &mut self,
        link: u32,
        addresses: &[IpAddr],
    ) -> Result<Vec<AddressFailure>, LinkError> {
        self.change(addresses, KernelErrorKind::NotFound, |ip| {
            codec::delete_address(link, ip)
        })
    }

    fn change(
        &mut self,
        addresses: &[IpAddr],
        accepted: KernelErrorKind,
        request: impl Fn(IpAddr) -> Request,
    ) -> Result<Vec<AddressFailure>, LinkError> {
        let requests: Vec<Request> = addresses.iter().map(|ip| request(*ip)).collect();
        let verdicts = self
            .socket
            .transact(&requests)
            .map_err(LinkError::Netlink)?;
        let failures = addresses
            .iter()
            .zip(verdicts)
            .filter_map(|(ip, verdict)| match verdict {
                // ENODEV is NotFound too, but it says that the link is gone, and the addresses with it.
                Err(refusal) if refusal.kind != accepted || is_missing_link(&refusal, accepted) => {
                    Some(AddressFailure {
                        address: *ip,
                        refusal,
                    })
                }
                _ => None,
            });
        Ok(failures.collect())
    }

    /// The gateways of the default routes of the main table.
    pub fn default_gateways(&mut self, family: IpFamily) -> Result<BTreeSet<Gateway>, LinkError> {
        let replies = match self.dump(codec::list_routes(family), Operation::ListRoutes, "") {
            // A namespace that never had a route has no table.
            Err(LinkError::Refused { source, .. }) if source.kind == KernelErrorKind::NotFound => {
                Vec::new()
            }
            other => other?,
        };
        let mut gateways = BTreeSet::new();
        for reply in &replies {
            gateways.extend(codec::gateways_of(reply)?);
        }
        Ok(gateways)
    }

    fn execute(&mut self, request: Request) -> Result<Result<(), KernelError>, LinkError> {
        let verdicts = self
            .socket
            .transact(&[request])
            .map_err(LinkError::Netlink)?;
        Ok(verdicts.into_iter().next().unwrap_or(Ok(())))
    }

    fn dump(
        &mut self,
        request: Request,
        operation: Operation,
        object: &str,
    ) -> Result<Vec<Reply>, LinkError> {
        self.socket.dump(request).map_err(|error| match error {
            NetlinkError::Refused(error) => refused(operation, object, error),
            error => LinkError::Netlink(error),
        })
    }
}

/// When adding, a link that is gone must not pass for success; when deleting, the addresses went with it.
fn is_missing_link(refusal: &KernelError, accepted: KernelErrorKind) -> bool {
    accepted == KernelErrorKind::AlreadyExists && refusal.errno == libc::ENODEV
}

fn refused(operation: Operation, object: &str, source: KernelError) -> LinkError {
    LinkError::Refused {
        operation,
        object: object.to_owned(),
        source,
    }
}
