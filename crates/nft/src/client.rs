// SPDX-License-Identifier: Apache-2.0
//! The conversation with the kernel: applies transactions, lists what is there, decides nothing.

use std::collections::BTreeSet;

use tracing::debug;

use netlink_pipeline::attribute::{self, DecodeError, align};
use netlink_pipeline::{
    BatchRefusal, KernelErrorKind, NetlinkError, Reply, Request, Socket, SocketStats,
};

use crate::chain::{ChainAttribute, ChainStatus};
use crate::element::{
    ElementKey, ElementListAttribute, ElementStatus, RawElement, intervals, plain,
};
use crate::error::{Error, Refusal};
use crate::family::Family;
use crate::generation::{Generation, GenerationAttribute};
use crate::message::{Body, Command, Message, NFNL_SUBSYS_NFTABLES};
use crate::operation::{Operation, Part};
use crate::rule::{Rule, RuleAttribute, RuleStatus, rules_of};
use crate::set::{Set, SetAttribute, SetFlags, SetStatus};
use crate::table::{ChainKey, SetKey, TableKey, TableStatus};

// include/uapi/linux/netlink.h and nfnetlink.h.
const NETLINK_NETFILTER: isize = 12;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_BATCH_GENID: u16 = 1;

/// Bytes of `struct nlmsghdr` and `struct nfgenmsg`, behind which attributes begin.
const HEADERS: usize = 16 + 4;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
/// Bytes of `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;

/// How often a set is listed that the kernel moves meanwhile.
const LIST_ATTEMPTS: u32 = 20;

/// A connection to the nftables of this network namespace. Blocking; each user opens its own.
///
/// ```no_run
/// use nft_netlink::{
///     Base, Chain, ChainType, Client, DataType, Element, Expression, Family, Field, Hook, MetaKey,
///     Operation, Place, Rule, Set, Table, TableKey, Value, Verdict,
/// };
///
/// let mut client = Client::open()?;
/// let table = TableKey::new(Family::Ipv4, "example".parse()?);
/// let blocked = table.set("blocked".parse()?);
/// let input = table.chain("input".parse()?);
/// let matches = [
///     Field::Ipv4Source.load(nft_netlink::Register::FIRST),
///     Expression::is_in(blocked.name.clone()),
///     Expression::verdict(Verdict::Drop),
/// ];
/// // All of it or nothing.
/// client.apply(&[
///     Operation::AddTable(Table::new(table)),
///     Operation::AddSet(Set::keys(blocked.clone(), DataType::Ipv4Address)),
///     Operation::AddChain(Chain::base(
///         input.clone(),
///         Base::new(ChainType::Filter, Hook::Input, 0),
///     )),
///     Operation::AddRule(Rule::new(input, matches), Place::Last),
///     Operation::AddElements(
///         blocked,
///         vec![Element::key(Value::from(std::net::Ipv4Addr::new(192, 0, 2, 1)))],
///     ),
/// ])?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Client {
    socket: Socket,
}

impl Client {
    /// Connects, and makes sure that nftables is there and that the process may use it. Asking
    /// makes the kernel load its module.
    pub fn open() -> Result<Self, Error> {
        let what = "open nftables";
        let socket = Socket::open_without_echo(NETLINK_NETFILTER)
            .map_err(|source| Error::Netlink { what, source })?;
        Self::over(socket)
    }

    /// The same over a given socket of protocol `NETLINK_NETFILTER`.
    pub fn over(socket: Socket) -> Result<Self, Error> {
        let mut client = Self { socket };
        let generation = client.generation()?;
        debug!(generation = generation.id, "nftables opened");
        Ok(client)
    }

    /// What went over the socket so far.
    pub const fn socket_stats(&self) -> SocketStats {
        self.socket.stats()
    }

    /// The present generation of all tables. Each transaction, of whatever process, makes a new
    /// one.
    pub fn generation(&mut self) -> Result<Generation, Error> {
        let what = "read the generation of nftables";
        let message = Message::new(
            Command::GetGeneration,
            Family::Unspecified,
            Vec::<GenerationAttribute>::new(),
        );
        let replies = self
            .socket
            .get(message.request(0)?)
            .map_err(|source| Error::Netlink { what, source })?
            .map_err(Error::of_first_question)?;
        let read = || {
            let message = parse(replies.first().ok_or(DecodeError::NoAnswer)?)?;
            match message.body {
                Body::Generation(attributes) => Generation::from_attributes(&attributes),
                _ => Err(unexpected(&message)),
            }
        };
        read().map_err(|source| Error::Decode { what, source })
    }

    /// Makes changes in one transaction: all of them or, if one is refused, none. Packets see the
    /// rules before it or after it. It is one system call, however many changes there are.
    pub fn apply(&mut self, operations: &[Operation]) -> Result<(), Error> {
        self.transact(None, operations)
    }

    /// The same, if the generation is still this one; [`Error::Changed`] otherwise.
    pub fn apply_at(
        &mut self,
        generation: &Generation,
        operations: &[Operation],
    ) -> Result<(), Error> {
        self.transact(Some(generation.id), operations)
    }

    fn transact(&mut self, generation: Option<u32>, operations: &[Operation]) -> Result<(), Error> {
        let what = "change nftables";
        let mut requests = Vec::new();
        // The operation of each request, and the first element that it is about.
        let mut origins = Vec::new();
        for (index, operation) in operations.iter().enumerate() {
            let set_id = u32::try_from(index + 1).unwrap_or(u32::MAX);
            for part in operation.parts(set_id)? {
                let Part {
                    request,
                    first_element,
                } = part;
                requests.push(request);
                origins.push((index, first_element));
            }
        }
        let begin = boundary(NFNL_MSG_BATCH_BEGIN, generation)?;
        let end = boundary(NFNL_MSG_BATCH_END, None)?;
        let refusals = match self.socket.transact_in_batch(&begin, &requests, &end) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(refusals)) => refusals,
            Err(source) => return Err(Error::Netlink { what, source }),
        };
        let mut told = Vec::new();
        for BatchRefusal { request, error, .. } in refusals {
            let about = request.and_then(|index| {
                let (operation, first) = *origins.get(index)?;
                Some((operation, first, requests.get(index)?))
            });
            let Some((operation, first, request)) = about else {
                match Error::of_transaction(error) {
                    Ok(general) => return Err(general),
                    Err(source) => told.push(Refusal {
                        operation: None,
                        element: None,
                        what: what.to_owned(),
                        source,
                    }),
                }
                continue;
            };
            let change = operations.get(operation);
            told.push(Refusal {
                operation: Some(operation),
                element: change
                    .and_then(|change| refused_element(change, first, request, error.offset?)),
                what: change.map(ToString::to_string).unwrap_or_default(),
                source: error,
            });
        }
        let mut told = told.into_iter();
        match told.next() {
            Some(first) => Err(Error::Refused {
                first: Box::new(first),
                others: told.collect(),
                operations: operations.len(),
            }),
            None => Ok(()),
        }
    }

    /// All tables of this network namespace.
    pub fn tables(&mut self) -> Result<Vec<TableStatus>, Error> {
        let message = Message::new(Command::GetTable, Family::Unspecified, Body::Table(vec![]));
        self.list("list tables", &message, |message| match &message.body {
            Body::Table(attributes) => TableStatus::from_attributes(message.family, attributes),
            _ => Err(unexpected(&message)),
        })
    }

    /// One table, if it exists.
    pub fn table(&mut self, key: &TableKey) -> Result<Option<TableStatus>, Error> {
        let message = Message::new(Command::GetTable, key.family, key.to_attributes());
        self.one("read a table", &message, |message| match &message.body {
            Body::Table(attributes) => TableStatus::from_attributes(message.family, attributes),
            _ => Err(unexpected(&message)),
        })
    }

    /// The chains of a table, in the kernel's order. Empty when the table does not exist.
    pub fn chains(&mut self, table: &TableKey) -> Result<Vec<ChainStatus>, Error> {
        let attributes = vec![ChainAttribute::Table(table.name.clone())];
        let message = Message::new(Command::GetChain, table.family, attributes);
        let mut chains = self.list("list chains", &message, |message| match &message.body {
            Body::Chain(attributes) => ChainStatus::from_attributes(message.family, attributes),
            _ => Err(unexpected(&message)),
        })?;
        // Older kernels list those of all tables of the family.
        chains.retain(|status| status.chain.key.table == *table);
        Ok(chains)
    }

    /// The rules of a table, chain by chain in their order. Empty when the table does not exist.
    pub fn rules(&mut self, table: &TableKey) -> Result<Vec<RuleStatus>, Error> {
        let attributes = vec![RuleAttribute::Table(table.name.clone())];
        self.list_rules(table, attributes, |status| status)
    }

    /// The same, of which `read` takes what is wanted of a rule and its handle. It needs the memory
    /// of that alone: whole rules of large tables take much.
    pub fn rules_as<T>(
        &mut self,
        table: &TableKey,
        read: impl Fn(&Rule, u64) -> T,
    ) -> Result<Vec<T>, Error> {
        let attributes = vec![RuleAttribute::Table(table.name.clone())];
        self.list_rules(table, attributes, |status| {
            read(&status.rule, status.handle)
        })
    }

    /// The rules of a chain in their order. Empty when it does not exist.
    pub fn rules_of(&mut self, chain: &ChainKey) -> Result<Vec<RuleStatus>, Error> {
        let mut rules = self.list_rules(&chain.table, rules_of(chain), |status| status)?;
        rules.retain(|status| status.rule.chain == *chain);
        Ok(rules)
    }

    fn list_rules<T>(
        &mut self,
        table: &TableKey,
        attributes: Vec<RuleAttribute>,
        read: impl Fn(RuleStatus) -> T,
    ) -> Result<Vec<T>, Error> {
        let message = Message::new(Command::GetRule, table.family, attributes);
        let rules = self.list("list rules", &message, |message| match &message.body {
            Body::Rule(attributes) => {
                let status = RuleStatus::from_attributes(message.family, attributes)?;
                // Older kernels list those of all tables of the family.
                Ok((status.rule.chain.table == *table).then(|| read(status)))
            }
            _ => Err(unexpected(&message)),
        })?;
        Ok(rules.into_iter().flatten().collect())
    }

    /// The sets and maps of a table, without their elements. Empty when the table does not exist.
    pub fn sets(&mut self, table: &TableKey) -> Result<Vec<SetStatus>, Error> {
        let attributes = vec![SetAttribute::Table(table.name.clone())];
        let message = Message::new(Command::GetSet, table.family, attributes);
        let mut sets = self.list("list sets", &message, |message| match &message.body {
            Body::Set(attributes) => SetStatus::from_attributes(message.family, attributes),
            _ => Err(unexpected(&message)),
        })?;
        sets.retain(|status| status.set.key.table == *table);
        Ok(sets)
    }

    /// One set or map, if it exists.
    pub fn set(&mut self, key: &SetKey) -> Result<Option<SetStatus>, Error> {
        let message = Message::new(Command::GetSet, key.table.family, key.to_attributes());
        self.one("read a set", &message, |message| match &message.body {
            Body::Set(attributes) => SetStatus::from_attributes(message.family, attributes),
            _ => Err(unexpected(&message)),
        })
    }

    /// The elements of a set or map, in the kernel's order; those of intervals of one part by their
    /// keys. Empty when it does not exist.
    ///
    /// The kernel moves the elements of a set that has grown in the background, and a list that it
    /// makes meanwhile lacks some and repeats others, without saying so. Where the kernel counts
    /// elements (Linux 6.16) such a list is asked for again; before, only sets with a
    /// [size](Set::size), which never grow, are listed reliably right after many were added.
    pub fn elements(&mut self, set: &Set) -> Result<Vec<ElementStatus>, Error> {
        // Of intervals it counts otherwise, and expired elements are counted and not listed.
        let moves = SetFlags::INTERVAL | SetFlags::TIMEOUT;
        if set.flags.intersects(moves) || set.size.is_some() {
            return self.list_elements(set);
        }
        for attempt in 1..=LIST_ATTEMPTS {
            let listed = self.list_elements(set)?;
            let status = self.set(&set.key)?;
            let Some(counted) = status.and_then(|status| status.elements) else {
                return Ok(listed);
            };
            let keys: BTreeSet<&ElementKey> = listed
                .iter()
                .map(|status| &status.element.key)
                .filter(|key| **key != ElementKey::Any)
                .collect();
            let is_whole = keys.len() == listed_keys(&listed);
            if is_whole && u32::try_from(keys.len()) == Ok(counted) {
                return Ok(listed);
            }
            debug!(attempt, "the set was moved while it was listed");
        }
        Err(Error::Netlink {
            what: "list elements",
            source: NetlinkError::DumpInterrupted {
                attempts: LIST_ATTEMPTS,
            },
        })
    }

    fn list_elements(&mut self, set: &Set) -> Result<Vec<ElementStatus>, Error> {
        let attributes = vec![
            ElementListAttribute::Table(set.key.table.name.clone()),
            ElementListAttribute::Set(set.key.name.clone()),
        ];
        let message = Message::new(Command::GetElements, set.key.table.family, attributes);
        let lists = self.list("list elements", &message, |message| match &message.body {
            Body::Elements(attributes) => elements_of(attributes),
            _ => Err(unexpected(&message)),
        })?;
        let raw = lists.into_iter().flatten().collect();
        Ok(if set.has_simple_intervals() {
            intervals(raw)
        } else {
            plain(raw)
        })
    }

    /// A dump. What is asked about and does not exist has an empty one.
    fn list<T>(
        &mut self,
        what: &'static str,
        message: &Message,
        read: impl Fn(Message) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, Error> {
        let request = message.request(0)?;
        let listed = self.socket.dump_as(request, |kind, payload| {
            Message::parse(kind, payload).and_then(&read)
        });
        match listed {
            Ok(listed) => listed
                .into_iter()
                .collect::<Result<_, _>>()
                .map_err(|source| Error::Decode { what, source }),
            Err(NetlinkError::Refused(refusal)) => match refusal.kind {
                KernelErrorKind::NotFound => Ok(vec![]),
                KernelErrorKind::Permission => Err(Error::Permission(refusal)),
                _ => Err(Error::Listing {
                    what,
                    source: refusal,
                }),
            },
            Err(source) => Err(Error::Netlink { what, source }),
        }
    }

    /// The answer about one object, if it exists.
    fn one<T>(
        &mut self,
        what: &'static str,
        message: &Message,
        read: impl Fn(Message) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, Error> {
        let replies = self
            .socket
            .get(message.request(0)?)
            .map_err(|source| Error::Netlink { what, source })?;
        match replies {
            Ok(replies) => {
                let first = replies.first().ok_or(DecodeError::NoAnswer);
                first
                    .and_then(parse)
                    .and_then(read)
                    .map(Some)
                    .map_err(|source| Error::Decode { what, source })
            }
            Err(refusal) => match refusal.kind {
                KernelErrorKind::NotFound => Ok(None),
                KernelErrorKind::Permission => Err(Error::Permission(refusal)),
                _ => Err(Error::Listing {
                    what,
                    source: refusal,
                }),
            },
        }
    }
}

/// The message that begins or ends a transaction. The resource is the subsystem.
fn boundary(kind: u16, generation: Option<u32>) -> Result<Request, Error> {
    let mut payload = crate::message::header(Family::Unspecified, u16::from(NFNL_SUBSYS_NFTABLES));
    if let Some(generation) = generation {
        payload.u32_be(NFNL_BATCH_GENID, generation);
    }
    Ok(Request {
        kind,
        flags: 0,
        payload: payload.finish()?,
    })
}

fn parse(reply: &Reply) -> Result<Message, DecodeError> {
    Message::parse(reply.kind, &reply.payload)
}

fn unexpected(message: &Message) -> DecodeError {
    DecodeError::Kind {
        kind: Message::kind(message.command),
    }
}

/// Elements but the one for all others, which the kernel does not count.
fn listed_keys(listed: &[ElementStatus]) -> usize {
    let is_counted = |status: &&ElementStatus| status.element.key != ElementKey::Any;
    listed.iter().filter(is_counted).count()
}

fn elements_of(attributes: &[ElementListAttribute]) -> Result<Vec<RawElement>, DecodeError> {
    let mut elements = Vec::new();
    for attribute in attributes {
        if let ElementListAttribute::Elements(list) = attribute {
            for element in list {
                elements.push(RawElement::from_attributes(element)?);
            }
        }
    }
    Ok(elements)
}

/// The index of the element at which the kernel found fault, by the place in the request that it
/// names.
fn refused_element(
    operation: &Operation,
    first: usize,
    request: &Request,
    offset: u32,
) -> Option<usize> {
    let offset = usize::try_from(offset).ok()?;
    let attributes = request.payload.get(HEADERS - 16..)?;
    let mut at = HEADERS;
    for raw in attribute::list(attributes).map_while(Result::ok) {
        if raw.kind() == NFTA_SET_ELEM_LIST_ELEMENTS {
            at += ATTRIBUTE_HEADER;
            let lists = attribute::list(raw.value()).map_while(Result::ok);
            for (number, raw) in lists.enumerate() {
                let end = at + align(ATTRIBUTE_HEADER + raw.value().len());
                if (at..end).contains(&offset) {
                    return nth_element(operation.elements(), first, number);
                }
                at = end;
            }
            return None;
        }
        at += align(ATTRIBUTE_HEADER + raw.value().len());
    }
    None
}

/// The index of the element from which the `number`th list of attributes behind that of element
/// `first` comes.
fn nth_element(elements: &[crate::element::Element], first: usize, number: usize) -> Option<usize> {
    let mut lists = 0;
    for (index, element) in elements.iter().enumerate().skip(first) {
        lists += element.to_attributes().len();
        if number < lists {
            return Some(index);
        }
    }
    None
}
