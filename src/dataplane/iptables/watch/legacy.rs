// SPDX-License-Identifier: Apache-2.0
//! `getsockopt` of `ip_tables`, as `iptables-legacy` calls it before it reads a table.
//!
//! `IPT_SO_GET_INFO` returns the number of entries, their size and where the built-in chains begin
//! and end, in a microsecond however large the table is: every flush, deletion and insertion shows.
//! A rule that was replaced by one of the same size does not, so tables up to [`LARGEST_READ`] are
//! read (`IPT_SO_GET_ENTRIES`) and hashed, without their packet counters, every few seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_int;
use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::io;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tracing::debug;

use crate::clock::Clock;
use kpr_core::model::net::IpFamily;
use kpr_core::plan::ruleset::Growth;
use kpr_core::plan::ruleset::Table;

/// The largest table that is read, in bytes: some thousand rules, which takes about a millisecond.
const LARGEST_READ: usize = 1 << 20;

/// Tables that seem unchanged are read for one part in this many of the time.
const READ_SHARE: u32 = 5_000;

// include/uapi/linux/netfilter_ipv4/ip_tables.h; ip6_tables has the same numbers.
const IPT_SO_GET_INFO: c_int = 64;
const IPT_SO_GET_ENTRIES: c_int = 65;

/// `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;

/// `struct ipt_getinfo`: a name and thirteen numbers, the last being the size of all entries.
const INFO: usize = NAME + 13 * 4;

/// `struct ipt_get_entries` before its entries: name and size, padded to the alignment of a `u64`.
const ENTRIES: usize = (NAME + 4).next_multiple_of(align_of::<u64>());

/// A chain begins with its name and ends with a return.
const ENTRIES_OF_A_CHAIN: i64 = 2;

/// The tables that may contain our rules.
const TABLES: [&str; 4] = ["mangle", "nat", "filter", "security"];

/// Offsets in `struct ipt_entry` or `struct ip6t_entry`.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Of `target_offset`, which `next_offset`, `comefrom` and the counters follow.
    offsets: usize,
    /// Of the matches and the target.
    elements: usize,
}

impl Layout {
    const fn of(family: IpFamily) -> Self {
        match family {
            IpFamily::V4 => Self {
                offsets: 88,
                elements: 112,
            },
            IpFamily::V6 => Self {
                offsets: 140,
                elements: 168,
            },
        }
    }
}

/// What is compared of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TableSummary {
    info: [u8; INFO],
    /// Of the entries, if the table is small and was read.
    hash: Option<u64>,
}

/// Whether all tables are the same as far as both know.
fn is_same(some: &Summaries, others: &Summaries) -> bool {
    let is_same = |(one, other): (&TableSummary, &TableSummary)| {
        let hashes = one.hash.zip(other.hash);
        one.info == other.info && hashes.is_none_or(|(one, other)| one == other)
    };
    some.keys().eq(others.keys()) && some.values().zip(others.values()).all(is_same)
}

impl TableSummary {
    /// The number of entries, which precedes their size.
    fn entries(&self) -> i64 {
        let bytes = self.info.get(INFO - 8..INFO - 4);
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, |bytes| i64::from(u32::from_ne_bytes(bytes)))
    }
}

type Summaries = BTreeMap<&'static str, TableSummary>;

/// Watches the tables of one family.
#[derive(Debug)]
pub(super) struct LegacyWatch {
    socket: Socket,
    family: IpFamily,
    /// As of when we last read or wrote the rules.
    known: Option<Summaries>,
    /// A write of ours found or left something else than expected.
    is_suspect: bool,
    /// When tables that seem unchanged are read again.
    next_read: Duration,
    clock: Clock,
}

impl LegacyWatch {
    pub(super) fn open(family: IpFamily) -> io::Result<Self> {
        let domain = match family {
            IpFamily::V4 => Domain::IPV4,
            IpFamily::V6 => Domain::IPV6,
        };
        // A raw socket of this protocol receives nothing.
        let raw = Type::from(libc::SOCK_RAW);
        let protocol = Protocol::from(libc::IPPROTO_RAW);
        Ok(Self {
            socket: Socket::new(domain, raw, Some(protocol))?,
            family,
            known: None,
            is_suspect: false,
            next_read: Duration::ZERO,
            clock: Clock::system(),
        })
    }

    pub(super) fn before_look(&mut self) {
        self.known = Some(self.summaries(true));
        self.is_suspect = false;
    }

    pub(super) fn has_changed(&mut self) -> bool {
        let Some(known) = self.known.as_ref().filter(|_| !self.is_suspect) else {
            return self.is_suspect;
        };
        let start = self.clock.monotonic();
        let reads = start >= self.next_read;
        let found = self.summaries(reads);
        self.is_suspect = !is_same(known, &found);
        if reads {
            let end = self.clock.monotonic();
            self.next_read = end + end.saturating_sub(start) * READ_SHARE;
        }
        self.is_suspect
    }

    /// A process that waits for the lock of iptables gets it after our write and before we look. So
    /// the number of entries must be what our write made it, and other tables must be unchanged.
    pub(super) fn around_write<E>(
        &mut self,
        tables: &BTreeSet<Table>,
        growth: &BTreeMap<Table, Growth>,
        write: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(known) = self.known.take() else {
            return write();
        };
        let before = self.summaries(true);
        let result = write();
        let after = self.summaries(true);
        let is_ours = |table: &Table| {
            let name = table.as_str();
            match (before.get(name), after.get(name), growth.get(table)) {
                // Our write may have created the table.
                (None, _, _) => true,
                (Some(before), Some(after), Some(growth)) if result.is_ok() => {
                    before.entries() + growth.rules + ENTRIES_OF_A_CHAIN * growth.chains
                        == after.entries()
                }
                (before, after, None) if !tables.contains(table) => before == after,
                // Unknown; what failed is read again in any case.
                _ => true,
            }
        };
        if !is_same(&known, &before) || !Table::ALL.iter().all(is_ours) {
            self.is_suspect = true;
        }
        self.known = Some(after);
        result
    }

    /// `reads`: small tables, too, and not their outlines alone.
    fn summaries(&self, reads: bool) -> Summaries {
        // Asking for a table that does not exist would create it.
        let loaded = fs::read_to_string(match self.family {
            IpFamily::V4 => "/proc/thread-self/net/ip_tables_names",
            IpFamily::V6 => "/proc/thread-self/net/ip6_tables_names",
        })
        .unwrap_or_default();
        let loaded = |table: &&str| loaded.lines().any(|line| line == *table);
        let mut summaries = BTreeMap::new();
        for table in TABLES.into_iter().filter(loaded) {
            match self.summary(table, reads) {
                Ok(summary) => {
                    summaries.insert(table, summary);
                }
                // It changed between two calls or is gone: it differs in any case.
                Err(error) => debug!(table, %error, "cannot read table"),
            }
        }
        summaries
    }

    fn summary(&self, table: &str, reads: bool) -> io::Result<TableSummary> {
        let mut info = [0; INFO];
        put_name(&mut info, table);
        self.ask(IPT_SO_GET_INFO, &mut info)?;
        let size = info
            .last_chunk()
            .map_or(0, |size| u32::from_ne_bytes(*size));
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let hash = (reads && size <= LARGEST_READ)
            .then(|| self.hash(table, size))
            .transpose()?;
        Ok(TableSummary { info, hash })
    }

    fn hash(&self, table: &str, size: usize) -> io::Result<u64> {
        let buffer = self.entries(table, size)?;
        let entries = buffer.get(ENTRIES..).unwrap_or_default();
        Ok(hash_entries(entries, Layout::of(self.family)))
    }

    /// Whether some table, of whatever size, has one of these names of chains. Reads all tables.
    pub(super) fn has_chain(&self, names: &[&str]) -> bool {
        let names: Vec<Vec<u8>> = names
            .iter()
            .map(|name| [name.as_bytes(), &[0]].concat())
            .collect();
        let tables = self.summaries(false).into_keys();
        let read = |table| {
            let mut info = [0; INFO];
            put_name(&mut info, table);
            self.ask(IPT_SO_GET_INFO, &mut info).ok()?;
            let size = u32::from_ne_bytes(*info.last_chunk()?);
            self.entries(table, usize::try_from(size).ok()?).ok()
        };
        tables.filter_map(read).any(|entries| {
            let has = |name: &Vec<u8>| entries.windows(name.len()).any(|bytes| bytes == name);
            names.iter().any(has)
        })
    }

    /// The head of the answer and the entries of a table.
    fn entries(&self, table: &str, size: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; ENTRIES + size];
        put_name(&mut buffer, table);
        let wire_size = u32::try_from(size).unwrap_or(u32::MAX).to_ne_bytes();
        if let Some(place) = buffer.get_mut(NAME..NAME + 4) {
            place.copy_from_slice(&wire_size);
        }
        self.ask(IPT_SO_GET_ENTRIES, &mut buffer)?;
        Ok(buffer)
    }

    /// One `getsockopt`, whose buffer contains the request and takes the answer.
    fn ask(&self, option: c_int, buffer: &mut [u8]) -> io::Result<()> {
        let level = match self.family {
            IpFamily::V4 => libc::IPPROTO_IP,
            IpFamily::V6 => libc::IPPROTO_IPV6,
        };
        let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
        #[expect(unsafe_code, reason = "no library has these options of a socket")]
        // SAFETY: the socket is open as long as `self` lives; the kernel reads and writes at most
        // `length` bytes of `buffer`, which is that long and borrowed for the call, and writes
        // `length`, which is borrowed, too.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                level,
                option,
                buffer.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

fn put_name(buffer: &mut [u8], table: &str) {
    for (to, from) in buffer.iter_mut().zip(table.bytes()) {
        *to = from;
    }
}

/// Hashes entries without `comefrom`, which the kernel leaves undefined, and without counters.
fn hash_entries(entries: &[u8], layout: Layout) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let next = rest
            .get(layout.offsets + 2..layout.offsets + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, |bytes| usize::from(u16::from_ne_bytes(bytes)));
        let parts = rest
            .get(..layout.offsets + 4)
            .zip(rest.get(layout.elements..next))
            .zip(rest.get(next..));
        let Some(((head, elements), later)) = parts else {
            // Malformed: better a false alarm than none.
            hasher.write(rest);
            break;
        };
        hasher.write(head);
        hasher.write(elements);
        rest = later;
    }
    hasher.finish()
}

/// Reads entries of both families, for `fuzz/`.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(entries: &[u8]) {
    for family in IpFamily::ALL {
        hash_entries(entries, Layout::of(family));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout {
        offsets: 4,
        elements: 16,
    };

    /// Four bytes of match, offsets, four bytes of `comefrom`, four of counters, then elements.
    fn entry(what: u8, counter: u8, element: u8) -> Vec<u8> {
        let mut bytes = vec![what; 4];
        bytes.extend_from_slice(&16_u16.to_ne_bytes());
        bytes.extend_from_slice(&20_u16.to_ne_bytes());
        bytes.extend_from_slice(&[counter; 8]);
        bytes.extend_from_slice(&[element; 4]);
        bytes
    }

    fn hash(entries: &[Vec<u8>]) -> u64 {
        hash_entries(&entries.concat(), LAYOUT)
    }

    #[test]
    fn counters_do_not_count_but_all_else_does() {
        let of = |counter| hash(&[entry(1, counter, 2), entry(3, counter, 4)]);
        assert_eq!(of(0), of(9));
        assert_ne!(of(0), hash(&[entry(1, 0, 2), entry(3, 0, 5)]));
        assert_ne!(of(0), hash(&[entry(1, 0, 2), entry(9, 0, 4)]));
        assert_ne!(of(0), hash(&[entry(3, 0, 4), entry(1, 0, 2)]));
        assert_ne!(of(0), hash(&[entry(1, 0, 2)]));
    }

    #[test]
    fn broken_entries_end() {
        let mut endless = entry(1, 0, 2);
        endless[6..8].fill(0);
        assert_ne!(hash(&[endless.clone()]), hash(&[entry(1, 0, 2)]));
        assert_ne!(hash(&[vec![1; 7]]), hash(&[vec![2; 7]]));
    }
}
