// SPDX-License-Identifier: Apache-2.0
//! PURE: how the virtual servers of a Service port distribute connections.

use crate::model::ipvs_options::Scheduler;
use crate::model::{Protocol, ServicePort};
use crate::plan::context::Context;
use crate::plan::ipvs::object::{Forwarding, RealServers, VirtualServer, flags};
use crate::plan::ipvs::port_objects::Extras;
use crate::plan::ipvs::ramps;
use crate::plan::unmet::Unmet;

/// The schedulers that keep the clients of a mark's virtual server with their endpoints, the best
/// first.
pub const CLIENT_HASHES: [Scheduler; 2] = [Scheduler::Mh, Scheduler::Sh];

/// That of most addresses.
pub(super) fn wanted(
    service_port: &ServicePort,
    context: &Context,
    unmet: &mut Vec<Unmet>,
) -> VirtualServer {
    let options = service_port.ipvs.as_deref();
    let scheduler = match options.and_then(|options| options.scheduler) {
        None => context.scheduler.clone(),
        Some(wanted) => {
            let used = context.scheduler.clone();
            let obstacle = if context.refused_schedulers.contains(&wanted) {
                Some(Unmet::SchedulerNotAllowed { wanted, used })
            } else if context.missing_schedulers.contains(&wanted) {
                Some(Unmet::SchedulerMissing { wanted, used })
            } else if service_port.is_wide && wanted.has_table() && *used != *wanted.as_str() {
                Some(Unmet::SchedulerTooCostly { wanted, used })
            } else {
                None
            };
            let is_possible = obstacle.is_none();
            unmet.extend(obstacle);
            if is_possible {
                wanted.as_str().into()
            } else {
                context.scheduler.clone()
            }
        }
    };
    let hashes_port = options.and_then(|options| options.hashes_port);
    // A server of weight 0 is draining: hashing must not choose it. Hashing the port makes `mh`
    // spread the connections of one client, as kube-proxy does.
    let mut server_flags = match (&*scheduler, hashes_port) {
        ("mh", None | Some(true)) | ("sh", Some(true)) => flags::SCHED_FALLBACK | flags::SCHED_PORT,
        ("mh", Some(false)) | ("sh", None | Some(false)) => flags::SCHED_FALLBACK,
        (_, None) => 0,
        (_, Some(_)) => {
            let scheduler = scheduler.clone();
            unmet.push(Unmet::NoSchedulerFlags { scheduler });
            0
        }
    };
    let mut timeout = 0;
    let mut netmask = service_port.family.host_prefix_len();
    if let Some(affinity) = service_port.client_ip_affinity {
        server_flags |= flags::PERSISTENT;
        timeout = u32::try_from(affinity.as_secs()).unwrap_or(u32::MAX);
        let wanted = options.and_then(|options| options.persistence_prefix(service_port.family));
        netmask = wanted.unwrap_or(netmask);
    }
    VirtualServer {
        scheduler,
        flags: server_flags,
        timeout,
        netmask,
    }
}

/// That of addresses whose packets are forwarded without translation, if any are: only there may
/// each datagram be scheduled by itself. The kernel forgets a translation at once, and endpoints of
/// masqueraded packets would answer from an address that the client has not asked.
pub(super) fn of_direct(
    server: &VirtualServer,
    direct: Option<&RealServers>,
    service_port: &ServicePort,
    extras: &mut Extras,
) -> VirtualServer {
    let mut server = server.clone();
    let options = service_port.ipvs.as_deref();
    let is_wanted = options.is_some_and(|options| options.one_packet);
    if !is_wanted || service_port.name.protocol != Protocol::Udp {
        return server;
    }
    let mut servers = direct.into_iter().flat_map(RealServers::iter);
    let translated = servers.find(|(_, server)| server.forwarding == Forwarding::Masquerade);
    let endpoint = translated.map(|(key, _)| key.address);
    if direct.is_some() && endpoint.is_none() {
        server.flags |= flags::ONE_PACKET;
    } else {
        extras.lacks(Unmet::NoOnePacket { endpoint });
    }
    server
}

/// The virtual server of a mark. The kernel's persistence does not translate ports there
/// (`ip_vs_sched_persist`: the port of such a virtual server is 0, and only packets to the virtual
/// server's port are sent to the real server's), so affinity comes from a hash of the client's
/// address.
pub(super) fn of_mark(
    server: VirtualServer,
    context: &Context,
    unmet: &mut Vec<Unmet>,
) -> VirtualServer {
    if server.flags & flags::PERSISTENT == 0 {
        return server;
    }
    let [wanted, _] = CLIENT_HASHES;
    let mut present = CLIENT_HASHES.into_iter();
    let used = present.find(|scheduler| !context.missing_schedulers.contains(scheduler));
    if used != Some(wanted) {
        unmet.push(Unmet::ClientHashMissing { wanted, used });
    }
    match used {
        Some(used) => VirtualServer {
            scheduler: used.as_str().into(),
            flags: flags::SCHED_FALLBACK,
            timeout: 0,
            ..server
        },
        None => VirtualServer {
            flags: server.flags & !flags::PERSISTENT,
            timeout: 0,
            ..server
        },
    }
}

/// Why weights by place do not do what they are for.
pub(super) fn no_place_weights(
    server: &VirtualServer,
    zone: Option<&str>,
) -> impl Iterator<Item = Unmet> {
    let goes_by_weight = ramps::suits(&server.scheduler) || &*server.scheduler == "mh";
    let scheduler = || Unmet::NoPlaceWeights {
        scheduler: server.scheduler.clone(),
    };
    let no_scheduler = (!goes_by_weight).then(scheduler);
    no_scheduler
        .into_iter()
        .chain(zone.is_none().then_some(Unmet::NoZone))
}
