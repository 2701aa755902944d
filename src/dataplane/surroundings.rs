// SPDX-License-Identifier: Apache-2.0
//! Who else uses addresses and ports around this node: its DNS servers, and its own processes that
//! listen. Read from files, which cost nothing between two looks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use kpr_core::model::Protocol;
use kpr_core::model::address::parse_ip;

const RESOLVERS: &str = "/etc/resolv.conf";
/// Of the calling thread's network namespace.
const SOCKETS: &str = "/proc/thread-self/net";
/// States of `include/net/tcp_states.h`: a server's socket, and what a UDP socket without a peer is
/// in.
const LISTEN: u8 = 10;
const CLOSE: u8 = 7;
/// Kernels before 4.4 list connection requests among the listening sockets.
const SYN_RECEIVED: u8 = 3;

/// By protocol and port the addresses that processes of this node listen on; `None`: all.
pub type Listening = BTreeMap<(Protocol, u16), BTreeSet<Option<IpAddr>>>;

/// The DNS servers of this node; none if they cannot be read.
pub(super) fn resolvers() -> BTreeSet<IpAddr> {
    std::fs::read_to_string(RESOLVERS)
        .map_or_else(|_unreadable| BTreeSet::new(), |text| parse_resolvers(&text))
}

/// As `resolv.conf(5)` has it. A zone (`fe80::1%eth0`) only says on which link.
fn parse_resolvers(text: &str) -> BTreeSet<IpAddr> {
    let lines = text.lines().map(str::split_whitespace);
    lines
        .filter_map(|mut words| match (words.next(), words.next()) {
            (Some("nameserver"), Some(address)) => {
                let address = address.split('%').next().unwrap_or_default();
                parse_ip(address).ok()
            }
            _ => None,
        })
        .collect()
}

/// The sockets that wait for clients: TCP and UDP, both families. A family that the kernel lacks
/// has no file.
pub(super) fn listening() -> std::io::Result<Listening> {
    let mut found = Listening::new();
    for (name, protocol) in [
        ("tcp", Protocol::Tcp),
        ("tcp6", Protocol::Tcp),
        ("udp", Protocol::Udp),
        ("udp6", Protocol::Udp),
    ] {
        match File::open(Path::new(SOCKETS).join(name)) {
            Ok(file) => read_sockets(
                BufReader::with_capacity(1 << 16, file),
                protocol,
                &mut found,
            )?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The kernel lists servers' sockets before connections, of which there may be very many, and fills
/// one buffer at a time: what follows the servers is not read.
fn read_sockets(
    lines: impl BufRead,
    protocol: Protocol,
    found: &mut Listening,
) -> std::io::Result<()> {
    for line in lines.lines().skip(1) {
        let line = line?;
        let Some((address, port, state)) = parse_socket(&line) else {
            continue;
        };
        let waits = match protocol {
            Protocol::Udp => state == CLOSE,
            _ if state == SYN_RECEIVED => continue,
            _ if state != LISTEN => return Ok(()),
            _ => true,
        };
        // What listens on a loopback address is reached there only.
        if !waits || port == 0 || address.is_loopback() {
            continue;
        }
        let address = Some(address).filter(|address| !address.is_unspecified());
        found.entry((protocol, port)).or_default().insert(address);
    }
    Ok(())
}

/// Local address and port, and state, of a line like `  0: 0100007F:0277 00000000:0000 0A ...`
/// (`Documentation/networking/proc_net_tcp.rst`): words of the address in the order of the host.
fn parse_socket(line: &str) -> Option<(IpAddr, u16, u8)> {
    let mut words = line.split_whitespace().skip(1);
    let (address, port) = words.next()?.split_once(':')?;
    let state = words.nth(1)?;
    let mut bytes = Vec::new();
    let mut rest = address;
    while !rest.is_empty() {
        let (word, left) = rest.split_at_checked(8)?;
        bytes.extend(u32::from_str_radix(word, 16).ok()?.to_ne_bytes());
        rest = left;
    }
    let address = if let Ok(v4) = <[u8; 4]>::try_from(bytes.as_slice()) {
        IpAddr::V4(Ipv4Addr::from(v4))
    } else {
        let v6 = Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?);
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((address, port, u8::from_str_radix(state, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpr_core::model::testing::ip;

    #[test]
    fn resolvers_are_name_servers_alone() {
        let text = "# nameserver 192.0.2.9\nsearch example\nnameserver 192.0.2.1\n\
            nameserver\tfe80::1%eth0\noptions ndots:5\nnameserver what\nnameserver\n";
        assert_eq!(
            parse_resolvers(text),
            [ip("192.0.2.1"), ip("fe80::1")].into()
        );
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn servers_are_read_and_connections_are_not() {
        let header = "  sl  local_address rem_address   st tx_queue rx_queue\n";
        let tcp = "   0: 0100007F:277F 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n\
                   1: 0A0014AC:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n\
                   2: 00000000:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n\
                   3: 00000000:0050 0A0014AC:FFFE 03 00000000:00000000 00:00000000 00000000\n\
                   4: broken\n\
                   5: 0A0014AC:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n\
                   6: 0A0014AC:1F91 0B0014AC:8000 01 00000000:00000000 00:00000000 00000000\n\
                   7: 00000000:1F92 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n";
        let mut found = Listening::new();
        let text = format!("{header}{tcp}");
        read_sockets(text.as_bytes(), Protocol::Tcp, &mut found).unwrap();
        let at = |port, address: Option<&str>| ((Protocol::Tcp, port), [address.map(ip)].into());
        assert_eq!(
            found,
            [
                at(22, Some("172.20.0.10")),
                at(8080, Some("172.20.0.10")),
                at(10_250, None),
            ]
            .into()
        );
        let udp = "  0: 00000000000000000000000000000000:14E9 00000000000000000000000000000000:0000 07 0\n\
                   1: 000080FE000000000000000001000000:0035 00000000000000000000000000000000:0000 07 0\n\
                   2: 0000000000000000FFFF00000A0014AC:0043 00000000000000000000000000000000:0000 07 0\n\
                   3: 00000000000000000000000000000000:9999 000080FE000000000000000001000000:0035 01 0\n";
        let mut found = Listening::new();
        read_sockets(
            format!("{header}{udp}").as_bytes(),
            Protocol::Udp,
            &mut found,
        )
        .unwrap();
        let at = |port, address: Option<&str>| ((Protocol::Udp, port), [address.map(ip)].into());
        assert_eq!(
            found,
            [
                at(53, Some("fe80::1")),
                at(67, Some("172.20.0.10")),
                at(5353, None)
            ]
            .into()
        );
    }

    #[test]
    fn a_server_of_this_machine_is_found() {
        let server = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let udp = std::net::UdpSocket::bind("[::]:0").unwrap();
        let found = listening().unwrap();
        assert_eq!(found[&(Protocol::Tcp, port)], [None].into());
        let port = udp.local_addr().unwrap().port();
        assert_eq!(found[&(Protocol::Udp, port)], [None].into());
    }
}
