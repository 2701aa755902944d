// SPDX-License-Identifier: Apache-2.0
//! Asks the kernel to make, fill, list and remove sets.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use tracing::debug;

use super::constants as c;
use super::entry_attribute::{attributes_of, entry_of};
use super::error::{Action, EntryFailure, Error, SetError, SetErrorKind};
use super::header::{info, nfproto, properties};
use super::message::{Attribute, Message};
use super::types::{Entry, SetEntry, SetInfo, SetName, SetSpec, SetType};
use crate::IpFamily;
use netlink_pipeline::attribute::DecodeError;
use netlink_pipeline::find_attribute;
use netlink_pipeline::{
    KernelError, KernelErrorKind, NetlinkError, Reply, Request, Socket, SocketStats,
};

/// Entries per message. The longest entry (IPv6, a network and a mark) takes 112 bytes, and the
/// list that holds them is an attribute, which ends at 64 KiB; the kernel holds one lock for a
/// message, so more would gain nothing.
const ENTRIES_PER_MESSAGE: usize = 500;

// include/uapi/linux/netlink.h.
const NETLINK_NETFILTER: isize = 12;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

/// The revisions that we know how to ask for, per type; from ipset 7.17. A kernel with newer ones
/// has these too.
const fn newest_known_revision(set_type: SetType) -> u8 {
    match set_type {
        SetType::HashIp | SetType::HashIpPortIp => 6,
        SetType::HashIpPort => 7,
        SetType::HashIpPortNet => 8,
        SetType::BitmapPort => 3,
    }
}

/// The ipset protocol of a running kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Protocol {
    /// What both sides speak and messages are written in.
    pub version: u8,
    /// The newest that the kernel speaks.
    pub kernel: u8,
}

/// A conversation with the ipset of this network namespace. Blocking; not shared.
///
/// ```no_run
/// use ipset_netlink::{Client, Entry, HashType, IpFamily, SetSpec};
///
/// let mut client = Client::open()?;
/// let set = SetSpec::hash("blocked".parse()?, HashType::Ip, IpFamily::V4);
/// client.create(&set)?;
/// let entries = [Entry::Ip("192.0.2.1".parse()?).into(), Entry::Ip("192.0.2.2".parse()?).into()];
/// for failure in client.add(&set.name, &entries)? {
///     eprintln!("{failure}: {}", failure.refusal);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    protocol: Protocol,
    /// What the kernel answered about types, so that it is asked once for each.
    revisions: BTreeMap<SetType, u8>,
}

impl Client {
    /// Opens a socket and agrees on a protocol version. Fails where no set could ever be made.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(NETLINK_NETFILTER).map_err(Error::Netlink)?;
        Self::over(socket)
    }

    /// The same over a socket that is open already, such as one to a scripted peer.
    pub fn over(mut socket: Socket) -> Result<Self, Error> {
        let request = Message {
            command: c::IPSET_CMD_PROTOCOL,
            attributes: vec![Attribute::Protocol(c::IPSET_PROTOCOL)],
        };
        let replies = socket
            .get(request_of(&request, 0)?)
            .map_err(Error::Netlink)?
            .map_err(Error::Unavailable)?;
        let attributes = first(&replies)?.attributes;
        let (minimum, maximum) = range(
            &attributes,
            find_attribute!(attributes, Attribute::Protocol),
            "IPSET_ATTR_PROTOCOL",
        )?;
        let version = maximum.min(c::IPSET_PROTOCOL);
        if version < c::IPSET_PROTOCOL_MIN || minimum > c::IPSET_PROTOCOL {
            return Err(Error::Protocol { minimum, maximum });
        }
        debug!(version, kernel = maximum, "ipset protocol agreed");
        Ok(Self {
            socket,
            protocol: Protocol {
                version,
                kernel: maximum,
            },
            revisions: BTreeMap::new(),
        })
    }

    /// What was agreed on when the conversation began.
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// What went over the socket so far.
    pub const fn stats(&self) -> SocketStats {
        self.socket.stats()
    }

    /// Whether the kernel has sets of a type; asking may load its module, and creates nothing.
    pub fn supports(&mut self, set_type: SetType) -> Result<(), Error> {
        self.revision(set_type).map(|_| ())
    }

    /// Creates a set. One that exists and [can serve](SetSpec::can_serve) is success and keeps its
    /// entries; any other of that name is `SetErrorKind::AlreadyExists`.
    pub fn create(&mut self, spec: &SetSpec) -> Result<(), Error> {
        let revision = self.revision(spec.set_type())?;
        let message = self.message(
            c::IPSET_CMD_CREATE,
            [
                Attribute::SetName(spec.name.as_str().to_owned()),
                Attribute::TypeName(spec.set_type().as_str().to_owned()),
                Attribute::Revision(revision),
                Attribute::Family(nfproto(spec.family())),
                Attribute::Data(properties(spec.shape)),
            ],
        );
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match self.execute(&message, flags, Action::Create, &spec.name) {
            // Without NLM_F_EXCL the kernel would compare the sets itself, but not their families.
            Err(error) if error.is_already_exists() => {
                let existing = self.set(&spec.name)?.and_then(|info| info.spec);
                if existing.is_some_and(|existing| existing.can_serve(spec)) {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            result => result,
        }
    }

    /// Destroys a set with its entries. One that is not there is success; `SetErrorKind::Busy`
    /// while a rule uses it, and while a dump of it waits for its reader (`ref_netlink`).
    pub fn destroy(&mut self, set: &SetName) -> Result<(), Error> {
        let message = self.message(c::IPSET_CMD_DESTROY, [name(set)]);
        match self.execute(&message, 0, Action::Destroy, set) {
            Err(error) if error.is_not_found() => Ok(()),
            result => result,
        }
    }

    /// Removes all entries of a set.
    pub fn flush(&mut self, set: &SetName) -> Result<(), Error> {
        let message = self.message(c::IPSET_CMD_FLUSH, [name(set)]);
        self.execute(&message, 0, Action::Flush, set)
    }

    /// Exchanges the contents of two sets of one type and family in one step: rules that refer to
    /// either see the other's entries (and size) from then on. `SetErrorKind::Busy` while a dump of
    /// either waits for its reader.
    pub fn swap(&mut self, set: &SetName, other: &SetName) -> Result<(), Error> {
        let message = self.message(
            c::IPSET_CMD_SWAP,
            [name(set), Attribute::TypeName(other.as_str().to_owned())],
        );
        self.execute(&message, 0, Action::Swap, set)
    }

    /// Adds entries; one that is there already is success and gets the new mark. Entries that the
    /// kernel refuses are returned, all others are in the set then.
    ///
    /// When the set is full, entries of the same message behind the first refused one are reported
    /// as refused too without being tried.
    pub fn add(&mut self, set: &SetName, entries: &[SetEntry]) -> Result<Vec<EntryFailure>, Error> {
        self.change(c::IPSET_CMD_ADD, Action::Add, set, entries)
    }

    /// Deletes entries; one that is not there is success. Entries that the kernel refuses are
    /// returned.
    pub fn delete(&mut self, set: &SetName, entries: &[Entry]) -> Result<Vec<EntryFailure>, Error> {
        let entries: Vec<SetEntry> = entries.iter().copied().map(SetEntry::from).collect();
        self.change(c::IPSET_CMD_DEL, Action::Delete, set, &entries)
    }

    /// All sets of this network namespace, without entries.
    pub fn sets(&mut self) -> Result<Vec<SetInfo>, Error> {
        let mut sets = Vec::new();
        for message in self.list_all(c::IPSET_FLAG_LIST_HEADER)? {
            sets.extend(info(&message)?);
        }
        Ok(sets)
    }

    /// The names of all sets, which is the cheapest listing.
    pub fn names(&mut self) -> Result<BTreeSet<SetName>, Error> {
        let messages = self.list_all(c::IPSET_FLAG_LIST_SETNAME)?;
        Ok(messages
            .iter()
            .filter_map(|message| find_attribute!(message.attributes, Attribute::SetName))
            .filter_map(|name| SetName::new(name.as_str()).ok())
            .collect())
    }

    /// One set without its entries; `None` if there is none of that name.
    pub fn set(&mut self, set: &SetName) -> Result<Option<SetInfo>, Error> {
        let Some(replies) = self.list(set, Some(c::IPSET_FLAG_LIST_HEADER))? else {
            return Ok(None);
        };
        Ok(info(&first(&replies)?)?)
    }

    /// One set with its entries; `None` if there is none of that name. A set that this crate could
    /// not make is listed with no entries.
    pub fn entries(
        &mut self,
        set: &SetName,
    ) -> Result<Option<(SetInfo, BTreeSet<SetEntry>)>, Error> {
        let Some(replies) = self.list(set, None)? else {
            return Ok(None);
        };
        let mut header = None;
        let mut entries = BTreeSet::new();
        for reply in replies {
            let message = Message::parse(reply.kind, &reply.payload)?;
            if header.is_none() {
                header = info(&message)?;
            }
            let set_type = header
                .as_ref()
                .and_then(|info| info.spec.as_ref())
                .map(SetSpec::set_type);
            let list = find_attribute!(message.attributes, Attribute::Adt);
            if let (Some(set_type), Some(list)) = (set_type, list) {
                for attributes in list {
                    entries.insert(entry_of(set_type, attributes)?);
                }
            }
        }
        Ok(header.map(|header| (header, entries)))
    }

    /// The revision in which to create sets of a type.
    fn revision(&mut self, set_type: SetType) -> Result<u8, Error> {
        if let Some(revision) = self.revisions.get(&set_type) {
            return Ok(*revision);
        }
        // Types with addresses have both families in one; like ipset we ask with the first.
        let family = match set_type {
            SetType::BitmapPort => None,
            _ => Some(IpFamily::V4),
        };
        let message = self.message(
            c::IPSET_CMD_TYPE,
            [
                Attribute::TypeName(set_type.as_str().to_owned()),
                Attribute::Family(nfproto(family)),
            ],
        );
        let replies = self
            .socket
            .get(request_of(&message, 0)?)
            .map_err(Error::Netlink)?
            .map_err(|error| Error::TypeUnavailable {
                set_type,
                source: SetError::of(&error, Some(set_type)),
            })?;
        let attributes = first(&replies)?.attributes;
        let (minimum, maximum) = range(
            &attributes,
            find_attribute!(attributes, Attribute::Revision),
            "IPSET_ATTR_REVISION",
        )?;
        let known = newest_known_revision(set_type);
        if minimum > known {
            return Err(Error::Revision {
                set_type,
                minimum,
                maximum,
                known,
            });
        }
        let revision = maximum.min(known);
        self.revisions.insert(set_type, revision);
        Ok(revision)
    }

    /// Adds or deletes. The kernel stops at the first entry of a message that it refuses and names
    /// its line; what is behind it is sent again.
    fn change(
        &mut self,
        command: u8,
        action: Action,
        set: &SetName,
        entries: &[SetEntry],
    ) -> Result<Vec<EntryFailure>, Error> {
        let mut failures = Vec::new();
        let mut ranges: Vec<Range<usize>> = (0..entries.len())
            .step_by(ENTRIES_PER_MESSAGE)
            .map(|start| start..entries.len().min(start + ENTRIES_PER_MESSAGE))
            .collect();
        while !ranges.is_empty() {
            let requests = ranges
                .iter()
                .map(|range| self.entries_request(command, set, entries, range.clone()))
                .collect::<Result<Vec<_>, _>>()?;
            let verdicts = self.socket.transact(&requests).map_err(Error::Netlink)?;
            let mut again = Vec::new();
            for (range, verdict) in ranges.into_iter().zip(verdicts) {
                let Err(error) = verdict else { continue };
                let line = error.echoed.as_deref().and_then(Message::refused_line);
                let Some((at, entry)) = line.and_then(|line| entry_at(entries, line, &range))
                else {
                    // Nothing to do with an entry: no such set, no permission.
                    return Err(refused(action, set, &error));
                };
                let refusal = SetError::of(&error, Some(entry.entry.set_type()));
                let rest = at + 1..range.end;
                if refusal.kind == SetErrorKind::Full {
                    // Each further entry would cost a message to be told the same.
                    let rest = entries.get(rest).unwrap_or_default().iter();
                    failures.extend(rest.map(|entry| EntryFailure {
                        entry: *entry,
                        refusal: refusal.clone(),
                    }));
                } else if !rest.is_empty() {
                    again.push(rest);
                }
                failures.push(EntryFailure {
                    entry: *entry,
                    refusal,
                });
            }
            ranges = again;
        }
        failures.sort_by_key(|failure| failure.entry);
        Ok(failures)
    }

    fn entries_request(
        &self,
        command: u8,
        set: &SetName,
        entries: &[SetEntry],
        range: Range<usize>,
    ) -> Result<Request, Error> {
        let first_line = line_of(range.start);
        let list = entries
            .get(range)
            .unwrap_or_default()
            .iter()
            .zip(first_line..)
            .map(|(entry, line)| attributes_of(entry, line))
            .collect();
        let message = self.message(
            command,
            [name(set), Attribute::LineNo(NO_LINE), Attribute::Adt(list)],
        );
        // Without NLM_F_EXCL adding what is there and deleting what is not are success.
        request_of(&message, 0)
    }

    fn message(&self, command: u8, attributes: impl IntoIterator<Item = Attribute>) -> Message {
        let protocol = std::iter::once(Attribute::Protocol(self.protocol.version));
        Message {
            command,
            attributes: protocol.chain(attributes).collect(),
        }
    }

    fn execute(
        &mut self,
        message: &Message,
        flags: u16,
        action: Action,
        set: &SetName,
    ) -> Result<(), Error> {
        let request = request_of(message, flags)?;
        let verdicts = self.socket.transact(&[request]).map_err(Error::Netlink)?;
        match verdicts.into_iter().next() {
            Some(Err(error)) => Err(refused(action, set, &error)),
            _ => Ok(()),
        }
    }

    /// Dumps one set; `None` if it does not exist.
    fn list_all(&mut self, flags: u32) -> Result<Vec<Message>, Error> {
        let message = self.message(c::IPSET_CMD_LIST, [Attribute::Flags(flags)]);
        let replies = self
            .socket
            .dump(request_of(&message, 0)?)
            .map_err(Error::Netlink)?;
        let parse = |reply: &Reply| Message::parse(reply.kind, &reply.payload);
        Ok(replies.iter().map(parse).collect::<Result<_, _>>()?)
    }

    fn list(&mut self, set: &SetName, flags: Option<u32>) -> Result<Option<Vec<Reply>>, Error> {
        let flags = flags.map(Attribute::Flags);
        let message = self.message(c::IPSET_CMD_LIST, [name(set)].into_iter().chain(flags));
        match self.socket.dump(request_of(&message, 0)?) {
            Ok(replies) if replies.is_empty() => Ok(None),
            Ok(replies) => Ok(Some(replies)),
            Err(NetlinkError::Refused(error)) if error.kind == KernelErrorKind::NotFound => {
                Ok(None)
            }
            Err(NetlinkError::Refused(error)) => Err(refused(Action::List, set, &error)),
            Err(error) => Err(Error::Netlink(error)),
        }
    }
}

fn refused(action: Action, set: &SetName, error: &KernelError) -> Error {
    Error::Refused {
        action,
        set: set.clone(),
        source: SetError::of(error, None),
    }
}

fn name(set: &SetName) -> Attribute {
    Attribute::SetName(set.as_str().to_owned())
}

fn request_of(message: &Message, flags: u16) -> Result<Request, Error> {
    Ok(Request {
        kind: Message::kind(message.command),
        flags,
        payload: message.payload()?,
    })
}

/// The range of versions or revisions in an answer: a lone maximum is the only one.
fn range(
    attributes: &[Attribute],
    maximum: Option<&u8>,
    name: &'static str,
) -> Result<(u8, u8), DecodeError> {
    let maximum = *maximum.ok_or(DecodeError::Missing { attribute: name })?;
    let minimum = find_attribute!(attributes, Attribute::Minimum).copied();
    Ok((minimum.unwrap_or(maximum), maximum))
}

fn first(replies: &[Reply]) -> Result<Message, DecodeError> {
    let reply = replies.first().ok_or(DecodeError::NoAnswer)?;
    Message::parse(reply.kind, &reply.payload)
}

/// The line of a whole request. The kernel echoes it as it is when the request fails for no entry's
/// sake, and the entry's line otherwise; `ipset` sends the first entry's line, which leaves the two
/// cases alike.
const NO_LINE: u32 = 0;

/// Line numbers of entries begin at 1.
fn line_of(index: usize) -> u32 {
    u32::try_from(index)
        .unwrap_or(u32::MAX - 1)
        .saturating_add(1)
}

/// The entry with a line number, if it was in the message.
fn entry_at<'a>(
    entries: &'a [SetEntry],
    line: u32,
    range: &Range<usize>,
) -> Option<(usize, &'a SetEntry)> {
    let index = usize::try_from(line).ok()?.checked_sub(1)?;
    let entry = entries.get(index)?;
    range.contains(&index).then_some((index, entry))
}
