// SPDX-License-Identifier: Apache-2.0
//! Packets of an endpoint that conntrack takes for no part of a connection. Untranslated they would
//! make the client reset it, because they come from an address that it never heard of.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use socket2::{Domain, Socket, Type};

use super::{Lab, at};
use crate::cases::{At, Dataplane};
use crate::manifests::Service;
use crate::namespace::Namespace;
use crate::topology::{Family, Host, cluster_ip};
use crate::traffic::{Connection, Patience, Protocol};

const PAYLOAD: &[u8; 8] = b"forged!!";

pub(super) fn is_dropped(binary: &Path, dataplane: Dataplane) -> Result<()> {
    for seen in forge(binary, dataplane, &[])? {
        let Seen {
            family,
            sources,
            drops,
        } = seen;
        // Repetitions of what is long acknowledged belong to the connection, and are translated.
        let cluster_ip = cluster_ip(family, 1);
        ensure!(
            sources.iter().all(|source| *source == cluster_ip),
            "{family}: the client saw packets of {sources:?}"
        );
        ensure!(
            drops == Some(true),
            "{family}: the rule has met nothing ({drops:?})"
        );
    }
    Ok(())
}

pub(super) fn passes_where_liberal(binary: &Path, dataplane: Dataplane) -> Result<()> {
    for seen in forge(binary, dataplane, &["--conntrack-tcp-be-liberal=true"])? {
        let Seen {
            family,
            sources,
            drops,
        } = seen;
        ensure!(drops.is_none(), "{family}: there is the rule");
        let cluster_ip = cluster_ip(family, 1);
        ensure!(
            !sources.is_empty() && sources.iter().all(|source| *source == cluster_ip),
            "{family}: wanted packets of {cluster_ip}, were of {sources:?}"
        );
    }
    Ok(())
}

/// What became of forged packets.
struct Seen {
    family: Family,
    /// Sources of those that reached the client.
    sources: Vec<IpAddr>,
    /// Whether the rule that drops invalid packets has met any; `None`: there is no such rule.
    drops: Option<bool>,
}

/// A pod talks to a pod of the other node through a cluster IP, and the latter sends segments far
/// out of the window too.
fn forge(binary: &Path, dataplane: Dataplane, flags: &[&str]) -> Result<Vec<Seen>> {
    let web = Service::new("web", 1, &[Host::Web3]);
    let lab = Lab::new(binary, dataplane, std::slice::from_ref(&web), flags)?;
    let mut all = Vec::new();
    for family in Family::ALL {
        let to = at(At::ClusterIp, &web, family);
        let shell = lab.host(Host::Shell);
        let opened = Connection::open(shell, to, Protocol::Tcp, Patience::Long)?;
        let mut connection = opened.map_err(|outcome| anyhow!("{to}: {outcome}"))?;
        let watch = raw_socket(shell, family, Host::Shell.address(family))?;
        watch.set_nonblocking(true)?;
        let from = SocketAddr::new(Host::Web3.address(family), 8080);
        let client = connection.local_address()?;
        let web3 = raw_socket(lab.host(Host::Web3), family, from.ip())?;
        // Wherever the window is, some of them are far ahead of it.
        for quarter in 0..4_u32 {
            let segment = segment(from, client, quarter << 30);
            web3.send_to(&segment, SocketAddr::new(client.ip(), 0))?;
        }
        // What comes back has passed the same way after them.
        connection
            .echo()
            .with_context(|| format!("{family}: after forged packets"))?;
        all.push(Seen {
            family,
            sources: forged(&watch)?,
            drops: drops(&lab, family)?,
        });
    }
    Ok(all)
}

/// Sends and sees TCP segments; the kernel makes the IP header.
fn raw_socket(at: &Namespace, family: Family, address: IpAddr) -> Result<UdpSocket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let (raw, tcp) = (Type::from(libc::SOCK_RAW), libc::IPPROTO_TCP.into());
    let socket = at.enter(|| Socket::new(domain, raw, Some(tcp)))??;
    socket.bind(&SocketAddr::new(address, 0).into())?;
    Ok(socket.into())
}

/// The sources of forged packets that a socket has received.
fn forged(socket: &UdpSocket) -> Result<Vec<IpAddr>> {
    let mut sources = Vec::new();
    let mut buffer = [0; 256];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, source)) => {
                let packet = buffer.get(..length).unwrap_or_default();
                if packet.ends_with(PAYLOAD) {
                    sources.push(source.ip());
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(sources),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A TCP segment with [`PAYLOAD`].
fn segment(from: SocketAddr, to: SocketAddr, sequence: u32) -> Vec<u8> {
    const ACK_AND_PUSH: u8 = 0x18;
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    // What it acknowledges, the length of the header in words, the window, the checksum, no urgent
    // data.
    segment.extend([0; 4]);
    segment.extend([5 << 4, ACK_AND_PUSH]);
    segment.extend(1024_u16.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend(PAYLOAD);
    let length = u32::try_from(segment.len()).unwrap_or_default();
    let mut summed = Vec::new();
    for address in [from.ip(), to.ip()] {
        match address {
            IpAddr::V4(address) => summed.extend(address.octets()),
            IpAddr::V6(address) => summed.extend(address.octets()),
        }
    }
    summed.extend(length.to_be_bytes());
    summed.extend([0, 0, 0, 6]);
    summed.extend(&segment);
    let mut sum: u32 = summed
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).unwrap_or_default();
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    segment
}

/// See [`Seen::drops`].
fn drops(lab: &Lab, family: Family) -> Result<Option<bool>> {
    let save = format!("{}-save", lab.dataplane.program(family));
    let rules = lab.host(Host::Node).run(&save, &["-c", "-t", "filter"])?;
    let rule = rules
        .lines()
        .find(|line| line.contains("-A KUBE-FORWARD ") && line.contains("--ctstate INVALID"));
    Ok(rule.map(|rule| !rule.starts_with("[0:")))
}
