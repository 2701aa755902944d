// SPDX-License-Identifier: Apache-2.0
//! The conversation with the kernel: reads tables, applies operations, decides nothing.

use std::net::{IpAddr, Ipv4Addr};

use tracing::debug;

use super::config::Timeouts;
use super::constants::IPVS_GENL_NAME;
use super::daemon::{SyncDaemon, SyncRole};
use super::destination::DestinationStatus;
use super::error::Error;
use super::field::missing;
use super::info::Info;
use super::message::{GENL_HEADER_LEN, IpvsAttribute, IpvsCommand, IpvsMessage};
use super::name::KernelName;
use super::operation::Operation;
use super::service::{Protocol, Service, ServiceKey, ServiceStatus};
use netlink_pipeline::attribute::{self, DecodeError, Writer};
use netlink_pipeline::{
    KernelError, KernelErrorKind, NetlinkError, Reply, Request, Socket, SocketStats,
};

// include/uapi/linux/netlink.h and genetlink.h: the controller of generic netlink.
const NETLINK_GENERIC: isize = 16;
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_VERSION: u8 = 2;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// Where a scheduler is tried out: an address of TEST-NET-2 (RFC 5737), which nobody serves.
const PROBE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 0));

/// The first is kube-proxy's. The others serve when a probe that died has left it behind.
const PROBE_PORTS: std::ops::Range<u16> = 20_000..20_016;

/// A connection to the IPVS of this network namespace. Blocking; each user opens its own.
///
/// ```no_run
/// use ipvs_netlink::{
///     Client, Destination, DestinationKey, KernelName, Operation, Protocol, Service, ServiceKey,
/// };
///
/// let mut client = Client::open()?;
/// let key = ServiceKey::new(Protocol::Tcp, "192.0.2.1".parse()?, 80);
/// let server = DestinationKey { address: "10.0.0.1".parse()?, port: 8080 };
/// let results = client.apply(&[
///     Operation::AddService(Service::new(key, KernelName::ROUND_ROBIN)),
///     Operation::AddDestination(key, Destination::new(server, 1)),
/// ])?;
/// for refusal in results.into_iter().filter_map(Result::err) {
///     eprintln!("{refusal}");
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    family: u16,
}

impl Client {
    /// Connects, and makes sure that IPVS is there and that the process may use it. Looking up the
    /// family makes the kernel load its module.
    pub fn open() -> Result<Self, Error> {
        let what = "open IPVS";
        let socket =
            Socket::open(NETLINK_GENERIC).map_err(|source| Error::Netlink { what, source })?;
        Self::over(socket)
    }

    /// The same over a given socket of protocol `NETLINK_GENERIC`.
    pub fn over(mut socket: Socket) -> Result<Self, Error> {
        let family = resolve_family(&mut socket)?;
        let mut client = Self { socket, family };
        // Looking up the family needs no privilege, this does.
        let info = client.info()?;
        debug!(family, version = %info, "IPVS opened");
        Ok(client)
    }

    /// What went over the socket so far.
    pub const fn socket_stats(&self) -> SocketStats {
        self.socket.stats()
    }

    /// Version and table size.
    pub fn info(&mut self) -> Result<Info, Error> {
        let what = "read IPVS information";
        let message = self.get(what, &IpvsMessage::new(IpvsCommand::GetInfo, vec![]))?;
        Info::from_attributes(&message.attributes).map_err(|source| Error::Decode { what, source })
    }

    /// The connection time-outs.
    pub fn timeouts(&mut self) -> Result<Timeouts, Error> {
        let what = "read IPVS time-outs";
        let message = self.get(what, &IpvsMessage::new(IpvsCommand::GetConfig, vec![]))?;
        Ok(Timeouts::from_attributes(&message.attributes))
    }

    /// Sets the connection time-outs that are not zero.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), Error> {
        let message = IpvsMessage::new(IpvsCommand::SetConfig, timeouts.to_attributes());
        self.command("set IPVS time-outs", &message)
    }

    /// The sync daemons of the network namespace.
    pub fn daemons(&mut self) -> Result<Vec<SyncDaemon>, Error> {
        let what = "list IPVS sync daemons";
        let message = IpvsMessage::new(IpvsCommand::GetDaemon, vec![]);
        self.dump(what, &message, |message| {
            let attributes = message.daemon();
            attributes
                .ok_or_else(|| missing("IPVS_CMD_ATTR_DAEMON"))
                .and_then(SyncDaemon::from_attributes)
                .map_err(|source| Error::Decode { what, source })
        })
    }

    /// Starts a sync daemon; `EEXIST` if one of its role runs, `ENODEV` if the interface is
    /// missing.
    pub fn start_daemon(&mut self, daemon: &SyncDaemon) -> Result<(), Error> {
        let attributes = vec![IpvsAttribute::Daemon(daemon.to_attributes())];
        let message = IpvsMessage::new(IpvsCommand::NewDaemon, attributes);
        self.command("start an IPVS sync daemon", &message)
    }

    /// Stops the sync daemon of a role; `ESRCH` if there is none.
    pub fn stop_daemon(&mut self, role: SyncRole) -> Result<(), Error> {
        let attributes = vec![IpvsAttribute::Daemon(SyncDaemon::stop_attributes(role))];
        let message = IpvsMessage::new(IpvsCommand::DelDaemon, attributes);
        self.command("stop an IPVS sync daemon", &message)
    }

    /// Deletes every service of the network namespace, whoever added it.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.command("flush IPVS", &IpvsMessage::new(IpvsCommand::Flush, vec![]))
    }

    /// Zeroes the counters of a service and its destinations, or all.
    pub fn zero(&mut self, service: Option<&ServiceKey>) -> Result<(), Error> {
        let attributes = service.map(|key| IpvsAttribute::Service(key.to_attributes()));
        let message = IpvsMessage::new(IpvsCommand::Zero, attributes.into_iter().collect());
        self.command("zero IPVS counters", &message)
    }

    /// All services, in the kernel's order.
    ///
    /// The kernel does not mark a dump during which a table changed; another writer at that moment
    /// may hide or repeat an entry.
    pub fn services(&mut self) -> Result<Vec<ServiceStatus>, Error> {
        let what = "list IPVS services";
        let message = IpvsMessage::new(IpvsCommand::GetService, vec![]);
        self.dump(what, &message, |message| decode_service(what, message))
    }

    /// One service, if it exists.
    pub fn service(&mut self, key: &ServiceKey) -> Result<Option<ServiceStatus>, Error> {
        let what = "read an IPVS service";
        let message = IpvsMessage::new(
            IpvsCommand::GetService,
            vec![IpvsAttribute::Service(key.to_attributes())],
        );
        let request = self.request(&message)?;
        let reply = self
            .socket
            .get(request)
            .map_err(|source| Error::Netlink { what, source })?;
        match reply {
            Ok(replies) => decode_service(what, &single(what, &replies)?).map(Some),
            Err(refusal) if refusal.kind == KernelErrorKind::NotFound => Ok(None),
            Err(refusal) if refusal.kind == KernelErrorKind::Permission => {
                Err(Error::Permission(refusal))
            }
            Err(source) => Err(Error::Service {
                service: *key,
                source,
            }),
        }
    }

    /// The destinations of a service, in the kernel's order. Empty when the service does not exist:
    /// the kernel makes no difference.
    pub fn destinations(&mut self, service: &ServiceKey) -> Result<Vec<DestinationStatus>, Error> {
        let what = "list IPVS destinations";
        let message = IpvsMessage::new(
            IpvsCommand::GetDestination,
            vec![IpvsAttribute::Service(service.to_attributes())],
        );
        self.dump(what, &message, |message| {
            let attributes = message
                .destination()
                .ok_or_else(|| missing("IPVS_CMD_ATTR_DEST"));
            attributes
                .and_then(|attributes| {
                    DestinationStatus::from_attributes(attributes, service.family())
                })
                .map_err(|source| Error::Decode { what, source })
        })
    }

    /// Applies operations in order, many per system call. Result `i` belongs to operation `i`; a
    /// refused one does not stop those behind it.
    ///
    /// An error means that the conversation broke down: read the tables to learn what was applied.
    pub fn apply(
        &mut self,
        operations: &[Operation],
    ) -> Result<Vec<Result<(), KernelError>>, Error> {
        let requests = operations
            .iter()
            .map(|operation| self.request(&operation.to_message()))
            .collect::<Result<Vec<_>, _>>()?;
        self.socket
            .transact(&requests)
            .map_err(|source| Error::Netlink {
                what: "apply IPVS operations",
                source,
            })
    }

    /// Makes sure that the kernel has a scheduler; it loads the module on demand.
    ///
    /// A service that uses it is evidence enough. Else one is added where nobody serves, and
    /// deleted.
    pub fn probe_scheduler(&mut self, scheduler: KernelName) -> Result<(), Error> {
        if self
            .services()?
            .iter()
            .any(|status| status.service.scheduler == scheduler)
        {
            return Ok(());
        }
        self.try_scheduler(scheduler)
    }

    /// The same without looking for a service that uses it, which costs what there are of services.
    pub fn try_scheduler(&mut self, scheduler: KernelName) -> Result<(), Error> {
        let failed = |service, source| Error::Probe {
            scheduler,
            service,
            source,
        };
        let mut taken = None;
        for port in PROBE_PORTS {
            let key = ServiceKey::new(Protocol::Tcp, PROBE_ADDRESS, port);
            let probe = Operation::AddService(Service::new(key, scheduler));
            match self.apply_one(probe)? {
                Ok(()) => {
                    return match self.apply_one(Operation::DelService(key))? {
                        Err(source) if source.kind != KernelErrorKind::NotFound => {
                            Err(failed(key, source))
                        }
                        _ => Ok(()),
                    };
                }
                Err(source) => match source.kind {
                    KernelErrorKind::AlreadyExists => taken = Some((key, source)),
                    KernelErrorKind::NotFound => {
                        return Err(Error::SchedulerNotAvailable { scheduler, source });
                    }
                    KernelErrorKind::Permission => return Err(Error::Permission(source)),
                    _ => return Err(failed(key, source)),
                },
            }
        }
        taken.map_or(Ok(()), |(service, source)| Err(failed(service, source)))
    }

    fn apply_one(&mut self, operation: Operation) -> Result<Result<(), KernelError>, Error> {
        Ok(self
            .apply(&[operation])?
            .into_iter()
            .next()
            .unwrap_or(Ok(())))
    }

    fn command(&mut self, what: &'static str, message: &IpvsMessage) -> Result<(), Error> {
        let request = self.request(message)?;
        let verdict = self
            .socket
            .transact(&[request])
            .map_err(|source| Error::Netlink { what, source })?
            .into_iter()
            .next();
        match verdict {
            Some(Err(refusal)) => Err(refused(what, refusal)),
            Some(Ok(())) | None => Ok(()),
        }
    }

    fn get(&mut self, what: &'static str, message: &IpvsMessage) -> Result<IpvsMessage, Error> {
        let request = self.request(message)?;
        let replies = self
            .socket
            .get(request)
            .map_err(|source| Error::Netlink { what, source })?
            .map_err(|refusal| refused(what, refusal))?;
        single(what, &replies)
    }

    /// Each message is read as it comes: ten times as long as what is read from it, all together
    /// would be much.
    fn dump<T>(
        &mut self,
        what: &'static str,
        message: &IpvsMessage,
        read: impl Fn(&IpvsMessage) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let request = self.request(message)?;
        let replies = self.socket.dump_as(request, |_, payload| {
            decode(what, payload).and_then(|message| read(&message))
        });
        let replies = replies.map_err(|source| match source {
            NetlinkError::Refused(refusal) => refused(what, refusal),
            source => Error::Netlink { what, source },
        })?;
        replies.into_iter().collect()
    }

    fn request(&self, message: &IpvsMessage) -> Result<Request, Error> {
        Ok(Request {
            kind: self.family,
            flags: 0,
            payload: message.payload()?,
        })
    }
}

fn refused(what: &'static str, source: KernelError) -> Error {
    match source.kind {
        KernelErrorKind::Permission => Error::Permission(source),
        _ => Error::Command { what, source },
    }
}

fn decode(what: &'static str, payload: &[u8]) -> Result<IpvsMessage, Error> {
    IpvsMessage::parse(payload).map_err(|source| Error::Decode { what, source })
}

fn decode_service(what: &'static str, message: &IpvsMessage) -> Result<ServiceStatus, Error> {
    message
        .service()
        .ok_or_else(|| missing("IPVS_CMD_ATTR_SERVICE"))
        .and_then(ServiceStatus::from_attributes)
        .map_err(|source| Error::Decode { what, source })
}

fn single(what: &'static str, replies: &[Reply]) -> Result<IpvsMessage, Error> {
    let reply = replies.first().ok_or(Error::Decode {
        what,
        source: DecodeError::NoAnswer,
    })?;
    decode(what, &reply.payload)
}

/// Asks the generic netlink controller for the number of the family.
fn resolve_family(socket: &mut Socket) -> Result<u16, Error> {
    let what = "look up the IPVS family";
    let mut query = Writer::after(&[CTRL_CMD_GETFAMILY, CTRL_VERSION, 0, 0]);
    query.string(CTRL_ATTR_FAMILY_NAME, IPVS_GENL_NAME);
    let request = Request {
        kind: GENL_ID_CTRL,
        flags: 0,
        payload: query.finish()?,
    };
    let replies = socket
        .get(request)
        .map_err(|source| Error::Netlink { what, source })?
        .map_err(|refusal| match refusal.kind {
            KernelErrorKind::NotFound => Error::NotAvailable(refusal),
            _ => refused(what, refusal),
        })?;
    let attributes = replies
        .first()
        .and_then(|reply| reply.payload.get(GENL_HEADER_LEN..))
        .unwrap_or_default();
    attribute::list(attributes)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == CTRL_ATTR_FAMILY_ID)
        .ok_or_else(|| missing("CTRL_ATTR_FAMILY_ID"))
        .and_then(|attribute| attribute.u16("CTRL_ATTR_FAMILY_ID"))
        .map_err(|source| Error::Decode { what, source })
}
