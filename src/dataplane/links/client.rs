// SPDX-License-Identifier: Apache-2.0
//! Lists and changes links and addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_ROUTE;
use tracing::{info, warn};

use super::{Address, AddressFailure, Link, LinkError, codec};
use kpr_core::model::net::IpFamily;
use netlink_pipeline::{
    KernelError, KernelErrorKind, NetlinkError, Reply, Request, Socket, SocketStats,
};

/// A route netlink socket of this network namespace. Blocking; not shared.
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

    /// Over a socket that is open already, such as one to a scripted peer in tests.
    pub const fn over(socket: Socket) -> Self {
        Self { socket }
    }

    /// What went over the socket so far.
    pub const fn stats(&self) -> SocketStats {
        self.socket.stats()
    }

    /// The link of a name; `None` if there is none.
    pub fn find(&mut self, name: &str) -> Result<Option<Link>, LinkError> {
        self.get(codec::find_link(name), || format!("find link {name}"))
    }

    /// The link of an index; `None` if there is none.
    pub fn at(&mut self, index: u32) -> Result<Option<Link>, LinkError> {
        self.get(codec::link_at(index), || format!("find link {index}"))
    }

    fn get(
        &mut self,
        request: Request,
        what: impl FnOnce() -> String,
    ) -> Result<Option<Link>, LinkError> {
        let answer = self.socket.get(request);
        match answer.map_err(LinkError::Netlink)? {
            Ok(replies) => {
                let mut links = replies.iter().map(codec::link_of);
                Ok(links.find_map(Result::transpose).transpose()?)
            }
            Err(error) if error.kind == KernelErrorKind::NotFound => Ok(None),
            Err(error) => Err(refused(what(), error)),
        }
    }

    /// The dummy link of a name, created if there is none. It stays down: its addresses are local
    /// all the same, and it does not answer ARP for them.
    pub fn ensure_dummy(&mut self, name: &str) -> Result<Link, LinkError> {
        if let Some(link) = self.find_dummy(name)? {
            return Ok(link);
        }
        let created = self.execute(codec::create_dummy(name))?;
        // Another process may have been faster.
        accept(created, KernelErrorKind::AlreadyExists, || {
            format!("create link {name}")
        })?;
        let link = self.find_dummy(name)?.ok_or_else(|| LinkError::Vanished {
            name: name.to_owned(),
        })?;
        info!(link = name, index = link.index, "created dummy link");
        Ok(link)
    }

    fn find_dummy(&mut self, name: &str) -> Result<Option<Link>, LinkError> {
        match self.find(name)? {
            Some(link) if link.kind.as_deref() != Some("dummy") => Err(LinkError::NotDummy {
                name: name.to_owned(),
                kind: link.kind.unwrap_or_else(|| "physical".to_owned()),
            }),
            found => Ok(found),
        }
    }

    /// Gives a link an alias: a text that means nothing to the kernel.
    pub fn set_alias(&mut self, link: u32, alias: &str) -> Result<(), LinkError> {
        let outcome = self.execute(codec::set_alias(link, alias))?;
        outcome.map_err(|error| refused(format!("set the alias of link {link}"), error))
    }

    /// Deletes the dummy link of a name with its addresses. One that does not exist is success; a
    /// link of another kind is an error and stays.
    pub fn delete_dummy(&mut self, name: &str) -> Result<(), LinkError> {
        let Some(link) = self.find_dummy(name)? else {
            return Ok(());
        };
        let deleted = self.execute(codec::delete_link(link.index))?;
        accept(deleted, KernelErrorKind::NotFound, || {
            format!("delete link {name}")
        })
    }

    /// The addresses of one link, of one family or both. A link that does not exist has none.
    pub fn addresses_of(
        &mut self,
        link: u32,
        of: Option<IpFamily>,
    ) -> Result<Vec<Address>, LinkError> {
        match self.addresses_where(Some(link), of) {
            Err(LinkError::Refused { source, .. }) if source.kind == KernelErrorKind::NotFound => {
                Ok(Vec::new())
            }
            other => other,
        }
    }

    /// All addresses of the node, both families.
    pub fn addresses(&mut self) -> Result<Vec<Address>, LinkError> {
        self.addresses_where(None, None)
    }

    fn addresses_where(
        &mut self,
        link: Option<u32>,
        of: Option<IpFamily>,
    ) -> Result<Vec<Address>, LinkError> {
        let replies = self.dump(codec::list_addresses(link, of), "list addresses")?;
        let mut addresses = Vec::with_capacity(replies.len());
        for reply in &replies {
            // Old kernels ignore the filter.
            addresses.extend(
                codec::address_of(reply)?
                    .filter(|address| link.is_none_or(|link| address.link == link)),
            );
        }
        addresses.sort();
        Ok(addresses)
    }

    /// Adds host addresses to a link, pipelined. Those that exist are success. Returns those that
    /// the kernel rejected.
    pub fn add_addresses(
        &mut self,
        link: u32,
        addresses: &[IpAddr],
    ) -> Result<Vec<AddressFailure>, LinkError> {
        let accepted = Some(KernelErrorKind::AlreadyExists);
        self.change(addresses, accepted, |ip| codec::add_address(link, ip))
    }

    /// Adds host addresses to a link. Those that exist are taken away first: they lack their route
    /// in the table `local`, or nobody would add them. Returns those that the kernel rejected.
    pub fn bind_addresses(
        &mut self,
        link: u32,
        addresses: &[IpAddr],
    ) -> Result<Vec<AddressFailure>, LinkError> {
        let add = |ip| codec::add_address(link, ip);
        let failures = self.change(addresses, None, add)?;
        let (present, mut failures): (Vec<_>, Vec<_>) = failures
            .into_iter()
            .partition(|failure| failure.refusal.kind == KernelErrorKind::AlreadyExists);
        if !present.is_empty() {
            let again: Vec<IpAddr> = present.iter().map(|failure| failure.address).collect();
            warn!(
                count = again.len(),
                "addresses without a local route, binding them anew"
            );
            self.delete_addresses(link, &again)?;
            failures.extend(self.add_addresses(link, &again)?);
        }
        Ok(failures)
    }

    /// The destinations of the routes that deliver packets to this node.
    pub fn local_routes(&mut self, family: IpFamily) -> Result<Vec<IpNet>, LinkError> {
        let replies = self.dump(codec::list_local_routes(family), "list local routes")?;
        let routes = replies.iter();
        Ok(routes
            .filter_map(|reply| codec::local_route_of(reply.kind, &reply.payload))
            .collect())
    }

    /// Deletes host addresses from a link, pipelined. Those that do not exist are success. Returns
    /// those that the kernel rejected.
    pub fn delete_addresses(
        &mut self,
        link: u32,
        addresses: &[IpAddr],
    ) -> Result<Vec<AddressFailure>, LinkError> {
        let accepted = Some(KernelErrorKind::NotFound);
        self.change(addresses, accepted, |ip| codec::delete_address(link, ip))
    }

    fn change(
        &mut self,
        addresses: &[IpAddr],
        accepted: Option<KernelErrorKind>,
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
                // ENODEV is NotFound too: the link is gone, and the addresses with it.
                Err(refusal)
                    if Some(refusal.kind) != accepted || is_missing_link(&refusal, accepted) =>
                {
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
    pub fn default_gateways(&mut self, family: IpFamily) -> Result<BTreeSet<IpAddr>, LinkError> {
        let replies = match self.dump(codec::list_routes(family), "list routes") {
            // A network namespace that never had a route has no table.
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

    fn dump(&mut self, request: Request, what: &str) -> Result<Vec<Reply>, LinkError> {
        self.socket.dump(request).map_err(|error| match error {
            NetlinkError::Refused(error) => refused(what.to_owned(), error),
            error => LinkError::Netlink(error),
        })
    }
}

/// When adding, a missing link must not pass for success; when deleting, the addresses are gone
/// with it.
fn is_missing_link(refusal: &KernelError, accepted: Option<KernelErrorKind>) -> bool {
    accepted != Some(KernelErrorKind::NotFound) && refusal.errno == libc::ENODEV
}

/// Takes one kind of refusal for success.
fn accept(
    verdict: Result<(), KernelError>,
    accepted: KernelErrorKind,
    what: impl FnOnce() -> String,
) -> Result<(), LinkError> {
    match verdict {
        Err(error) if error.kind != accepted => Err(refused(what(), error)),
        _ => Ok(()),
    }
}

fn refused(what: String, source: KernelError) -> LinkError {
    LinkError::Refused { what, source }
}
