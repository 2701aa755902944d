// SPDX-License-Identifier: Apache-2.0
//! `/proc/net/ip_vs_conn`: connections as text, as `ip_vs_conn_seq_show` of
//! `net/netfilter/ipvs/ip_vs_conn.c` prints them.

use std::io::BufRead;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::listing::{LineReader, ListingError, hex_u32};
use super::service::Protocol;

/// Longer than any line that the kernel prints, with the data of a persistence engine.
const MAX_LINE: u64 = 1024;

/// How the file begins.
const HEADING: &str = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires";

/// A connection, or a template: what persistence remembers of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedConnection {
    /// `None` for a template of several ports or of a firewall mark.
    pub protocol: Option<Protocol>,
    /// The client. Port 0 is that of a template.
    pub client: (IpAddr, u16),
    /// Where the client sends to.
    pub service: (IpAddr, u16),
    /// The destination that answers.
    pub destination: (IpAddr, u16),
    /// The kernel's name of it: `ESTABLISHED`, `UDP`.
    pub state: String,
    /// Until it is forgotten, unless a packet comes.
    pub seconds_left: u64,
}

/// The connections of `/proc/net/ip_vs_conn`, one after the other as they are read. Ends after an
/// error.
///
/// The kernel has no filter for them: reading costs what there are. It says so much of a hundred
/// thousand connections in about a tenth of a second.
///
/// ```
/// use ipvs_netlink::Connections;
///
/// let text = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
/// TCP C0000201 8A2C 0A600001 0050 0A010002 1F90 ESTABLISHED     899
/// ";
/// for connection in Connections::new(text.as_bytes())? {
///     assert_eq!(connection?.state, "ESTABLISHED");
/// }
/// # Ok::<(), ipvs_netlink::ListingError>(())
/// ```
#[derive(Debug)]
pub struct Connections<R> {
    lines: LineReader<R>,
    has_ended: bool,
}

impl<R: BufRead> Connections<R> {
    /// Reads the heading, which a file of another format does not have.
    pub fn new(reader: R) -> Result<Self, ListingError> {
        let mut lines = LineReader::new(reader, MAX_LINE);
        let line = lines.next_line()?.unwrap_or_default();
        if !line.starts_with(HEADING) {
            return Err(ListingError::Line(line.to_owned()));
        }
        Ok(Self {
            lines,
            has_ended: false,
        })
    }
}

impl<R: BufRead> Iterator for Connections<R> {
    type Item = Result<ListedConnection, ListingError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_ended {
            return None;
        }
        let read = match self.lines.next_line() {
            Ok(None) => None,
            Ok(Some(line)) => {
                let read = connection(line).ok_or_else(|| ListingError::Line(line.to_owned()));
                Some(read)
            }
            Err(error) => Some(Err(error)),
        };
        self.has_ended = !matches!(read, Some(Ok(_)));
        read
    }
}

/// `TCP C0000201 8A2C 0A600001 0050 0A010002 1F90 ESTABLISHED     899`
fn connection(line: &str) -> Option<ListedConnection> {
    let mut words = line.split(' ').filter(|word| !word.is_empty());
    let protocol = match words.next()? {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    };
    let mut place = || -> Option<(IpAddr, u16)> {
        let (address, port) = (words.next()?, words.next()?);
        let address = match hex_u32(address) {
            Some(bits) => Ipv4Addr::from_bits(bits).into(),
            None => address.parse::<Ipv6Addr>().ok()?.into(),
        };
        let is_hex = port.len() == 4 && port.bytes().all(|byte| byte.is_ascii_hexdigit());
        let port = is_hex.then(|| u16::from_str_radix(port, 16).ok())??;
        Some((address, port))
    };
    Some(ListedConnection {
        protocol,
        client: place()?,
        service: place()?,
        destination: place()?,
        state: words.next()?.to_owned(),
        seconds_left: words.next()?.parse().ok()?,
    })
}
