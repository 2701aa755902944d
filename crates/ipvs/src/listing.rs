// SPDX-License-Identifier: Apache-2.0
//! `/proc/net/ip_vs`: services and their destinations as text, as `ip_vs_info_seq_show` of
//! `net/netfilter/ipvs/ip_vs_ctl.c` prints them.

use std::io::{self, BufRead, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::destination::DestinationKey;
use super::service::Protocol;

/// Longer than any line that the kernel prints.
const MAX_LINE: u64 = 256;

/// The lines before the first service.
const HEADING: [&str; 3] = [
    "IP Virtual Server version ",
    "Prot LocalAddress:Port Scheduler Flags",
    "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn",
];

/// What identifies a listed service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListedKey {
    /// Packets to an address and port.
    Address {
        /// The transport protocol.
        protocol: Protocol,
        /// The virtual address.
        address: IpAddr,
        /// Zero is any port.
        port: u16,
    },
    /// A firewall mark, of either family.
    Mark(u32),
    /// A protocol that IPVS cannot balance today.
    Unknown,
}

/// A forwarding method, as far as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListedForwarding {
    /// `Masq`; bypass, and methods that only newer kernels know, are printed so too.
    Masquerade,
    /// `Local`
    Local,
    /// `Tunnel`, of any type.
    Tunnel,
    /// `Route`
    DirectRoute,
}

/// A listed destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedDestination {
    /// Which destination of the service.
    pub key: DestinationKey,
    /// How packets get there.
    pub forwarding: ListedForwarding,
    /// Zero takes no new connections.
    pub weight: u32,
    /// Established connections.
    pub active_connections: u32,
    /// All other connections that are remembered, and all of UDP.
    pub inactive_connections: u32,
}

/// A service with its destinations, in the kernel's order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedService {
    /// Which service.
    pub key: ListedKey,
    /// All of them.
    pub destinations: Vec<ListedDestination>,
}

/// Why a listing cannot be read on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListingError {
    /// The reader failed.
    #[error("cannot read a list of IPVS")]
    Read(#[from] io::Error),
    /// A line that no kernel prints: of another format, or too long.
    #[error("a list of IPVS has a line that is not known: {0:?}")]
    Line(String),
}

/// The services of `/proc/net/ip_vs`, one after the other as they are read. Ends after an error.
///
/// Reading the file costs about a tenth of dumping the destinations of each service, but it shows
/// less: no tunnel types and thresholds, no address family of a service with a firewall mark, and
/// what is not one of three forwarding methods is `Masq`. A service comes with all of its
/// destinations; whole services may be missing or come twice when some are added or deleted
/// meanwhile.
///
/// ```
/// use ipvs_netlink::Listing;
///
/// let text = "IP Virtual Server version 1.2.1 (size=4096)
/// Prot LocalAddress:Port Scheduler Flags
///   -> RemoteAddress:Port Forward Weight ActiveConn InActConn
/// TCP  0A60000B:0050 rr\x20\x20
///   -> 0A010002:1F90      Masq    1      0          0\x20
/// ";
/// for service in Listing::new(text.as_bytes())? {
///     let service = service?;
///     assert_eq!(service.destinations[0].key.to_string(), "10.1.0.2:8080");
/// }
/// # Ok::<(), ipvs_netlink::ListingError>(())
/// ```
#[derive(Debug)]
pub struct Listing<R> {
    lines: LineReader<R>,
    /// The service whose line was read last.
    next: Option<ListedKey>,
}

/// Reads lines of a limited length.
#[derive(Debug)]
pub(super) struct LineReader<R> {
    reader: R,
    limit: u64,
    line: Vec<u8>,
}

impl<R: BufRead> LineReader<R> {
    /// No line has more bytes than `limit`.
    pub(super) const fn new(reader: R, limit: u64) -> Self {
        Self {
            reader,
            limit,
            line: Vec::new(),
        }
    }

    /// One line without its end; `None` at the end of the file.
    pub(super) fn next_line(&mut self) -> Result<Option<&str>, ListingError> {
        self.line.clear();
        let mut line = self.reader.by_ref().take(self.limit);
        line.read_until(b'\n', &mut self.line)?;
        if self.line.is_empty() {
            return Ok(None);
        }
        match self.line.strip_suffix(b"\n").map(std::str::from_utf8) {
            Some(Ok(line)) => Ok(Some(line)),
            _ => Err(unknown(&String::from_utf8_lossy(&self.line))),
        }
    }
}

impl<R: BufRead> Listing<R> {
    /// Reads the heading, which a file of another format does not have.
    pub fn new(reader: R) -> Result<Self, ListingError> {
        let mut listing = Self {
            lines: LineReader::new(reader, MAX_LINE),
            next: None,
        };
        for start in HEADING {
            let line = listing.lines.next_line()?.unwrap_or_default();
            if !line.starts_with(start) {
                return Err(unknown(line));
            }
        }
        if let Some(line) = listing.lines.next_line()? {
            let key = service(line).ok_or_else(|| unknown(line))?;
            listing.next = Some(key);
        }
        Ok(listing)
    }

    fn read_service(&mut self, key: ListedKey) -> Result<ListedService, ListingError> {
        let mut destinations = Vec::new();
        while let Some(line) = self.lines.next_line()? {
            if line.starts_with("  -> ") {
                destinations.push(destination(line).ok_or_else(|| unknown(line))?);
            } else {
                let next = service(line).ok_or_else(|| unknown(line))?;
                self.next = Some(next);
                break;
            }
        }
        Ok(ListedService { key, destinations })
    }
}

impl<R: BufRead> Iterator for Listing<R> {
    type Item = Result<ListedService, ListingError>;

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.next.take()?;
        // After an error there is no next one.
        let service = self.read_service(key);
        if service.is_err() {
            self.next = None;
        }
        Some(service)
    }
}

fn unknown(line: &str) -> ListingError {
    ListingError::Line(line.to_owned())
}

/// `TCP  0A60000A:0035 rr  `, `UDP  [fd00:0096:…:000a]:0035 sh `, `FWM  00002001 rr `. What follows
/// the key is not read: other answers of the kernel say more about it.
fn service(line: &str) -> Option<ListedKey> {
    let mut words = line.split(' ').filter(|word| !word.is_empty());
    let (protocol, key) = (words.next()?, words.next()?);
    let protocol = match protocol {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        "FWM" => return hex_u32(key).map(ListedKey::Mark),
        "->" => return None,
        _ => return place(key).map(|_| ListedKey::Unknown),
    };
    let (address, port) = place(key)?;
    Some(ListedKey::Address {
        protocol,
        address,
        port,
    })
}

/// `  -> 0A010002:0035      Masq    1      0          0         `.
fn destination(line: &str) -> Option<ListedDestination> {
    let mut words = line.split(' ').filter(|word| !word.is_empty());
    let (address, port) = words.nth(1).and_then(place)?;
    let forwarding = match words.next()? {
        "Masq" => ListedForwarding::Masquerade,
        "Local" => ListedForwarding::Local,
        "Tunnel" => ListedForwarding::Tunnel,
        "Route" => ListedForwarding::DirectRoute,
        _ => return None,
    };
    let weight = words.next()?.parse().ok()?;
    // The kernel prints them with a sign.
    let mut count = || -> Option<u32> {
        let count: i32 = words.next()?.parse().ok()?;
        Some(u32::try_from(count).unwrap_or_default())
    };
    Some(ListedDestination {
        key: DestinationKey { address, port },
        forwarding,
        weight,
        active_connections: count()?,
        inactive_connections: count()?,
    })
}

/// Address and port: `0A010002:0035`, `[fd00:0001:0000:0000:0000:0000:0000:0002]:0050`.
fn place(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.rsplit_once(':')?;
    let in_brackets = address.strip_prefix('[').map(|it| it.strip_suffix(']'));
    let address = match in_brackets {
        Some(address) => address?.parse::<Ipv6Addr>().ok()?.into(),
        None => Ipv4Addr::from_bits(hex_u32(address)?).into(),
    };
    let is_hex = port.len() == 4 && port.bytes().all(|byte| byte.is_ascii_hexdigit());
    let port = is_hex.then(|| u16::from_str_radix(port, 16).ok())??;
    Some((address, port))
}

pub(super) fn hex_u32(text: &str) -> Option<u32> {
    let is_hex = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u32::from_str_radix(text, 16).ok())?
}
