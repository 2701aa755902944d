// SPDX-License-Identifier: Apache-2.0
//! Requests out, answers matched by sequence number.

use tracing::{debug, trace};

use super::error::{BatchRefusal, KernelError, NetlinkError};
use super::message::{Answer, Messages, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, Reply, Request};
use super::transport::{Echo, Kernel, Transport};

/// How often a dump is repeated when the table changed under it.
const DUMP_ATTEMPTS: u32 = 8;

/// Bytes per `sendmsg`. More saves nothing: the call is one of hundreds of messages by then.
const SEND_LIMIT: usize = 64 * 1024;

/// A blocking netlink socket. Not shared: each user opens its own.
///
/// It waits ten seconds for an answer. After a call that failed midway the next one begins with a
/// fresh socket, so that no late answer is taken for a new one.
///
/// ```no_run
/// use netlink_pipeline::{Request, Socket};
///
/// const NETLINK_ROUTE: isize = 0;
/// const RTM_GETLINK: u16 = 18;
///
/// let mut socket = Socket::open(NETLINK_ROUTE)?;
/// // `struct ifinfomsg`, all zero: every link.
/// let links = socket.dump(Request { kind: RTM_GETLINK, flags: 0, payload: vec![0; 16] })?;
/// println!("{} links", links.len());
/// # Ok::<(), netlink_pipeline::NetlinkError>(())
/// ```
#[derive(Debug)]
pub struct Socket {
    transport: Box<dyn Transport>,
    /// The sequence number of the next request. Numbers are not reused for 2^32 requests, so an
    /// answer that is late by less than that is recognised and dropped.
    sequence: u32,
    /// Set when an exchange ended early: answers, or a running dump, may be left on the socket.
    unfinished: bool,
    stats: SocketStats,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
}

/// What went over a socket since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketStats {
    /// `sendmsg` calls, each with all its answers.
    pub round_trips: u64,
    /// Requests.
    pub messages_sent: u64,
    /// Messages of any kind from the kernel: ACKs, refusals, replies, ends of dumps.
    pub messages_received: u64,
    /// Bytes of requests with their headers and padding.
    pub bytes_sent: u64,
    /// Bytes of datagrams from the kernel.
    pub bytes_received: u64,
}

impl Socket {
    /// Opens a socket of a netlink protocol, such as `NETLINK_GENERIC` (16), in this network
    /// namespace.
    pub fn open(protocol: isize) -> Result<Self, NetlinkError> {
        Self::open_with(protocol, Echo::Whole)
    }

    /// The same for a client that sends long requests and never reads
    /// [`KernelError::echoed`](crate::KernelError::echoed): refusals do not repeat the request, so
    /// that more of them fit into the receive queue.
    pub fn open_without_echo(protocol: isize) -> Result<Self, NetlinkError> {
        Self::open_with(protocol, Echo::Capped)
    }

    fn open_with(protocol: isize, echo: Echo) -> Result<Self, NetlinkError> {
        let kernel = Kernel::open(protocol, echo)
            .map_err(|source| NetlinkError::Open { protocol, source })?;
        Ok(Self::over(Box::new(kernel)))
    }

    /// A socket over any transport, such as a scripted one.
    pub fn over(transport: Box<dyn Transport>) -> Self {
        Self {
            transport,
            sequence: 1,
            unfinished: false,
            stats: SocketStats::default(),
            outgoing: Vec::new(),
            incoming: Vec::new(),
        }
    }

    /// What went over the socket so far.
    pub const fn stats(&self) -> SocketStats {
        self.stats
    }

    /// Sends many requests, pipelined, and waits until each has its ACK or refusal. Result `i`
    /// belongs to request `i`. The kernel executes them in order and goes on after a refusal.
    ///
    /// An error means that the exchange broke down: what happened to the requests is unknown then.
    pub fn transact(
        &mut self,
        requests: &[Request],
    ) -> Result<Vec<Result<(), KernelError>>, NetlinkError> {
        if let Some(request) = requests.iter().find(|request| request.is_too_long()) {
            return Err(NetlinkError::TooLong {
                bytes: request.wire_len(),
            });
        }
        let mut results = Vec::with_capacity(requests.len());
        let mut rest = requests;
        while !rest.is_empty() {
            let (window, later) = rest.split_at(self.window(rest));
            let outcome = self.exchange(window, NLM_F_ACK, |_| {});
            match outcome {
                Ok(mut verdicts) => results.append(&mut verdicts),
                Err(NetlinkError::TimedOut { answered, .. }) => {
                    return Err(NetlinkError::TimedOut {
                        answered: results.len() + answered,
                        expected: requests.len(),
                    });
                }
                Err(error) => return Err(error),
            }
            rest = later;
        }
        Ok(results)
    }

    /// Requests between the messages that begin and end a transaction of nfnetlink: all of them are
    /// done or none. They go in one datagram, for which the send buffer is enlarged beyond its
    /// system-wide limit, as the capability that such families ask for allows.
    ///
    /// Refusals come in the order of the requests, at least one of them. The kernel goes on after
    /// the first refused request, so that there may be more. No requests are success.
    pub fn transact_in_batch(
        &mut self,
        begin: &Request,
        requests: &[Request],
        end: &Request,
    ) -> Result<Result<(), Vec<BatchRefusal>>, NetlinkError> {
        let count = requests.len();
        if requests.is_empty() {
            return Ok(Ok(()));
        }
        // The only ACK. Before Linux 6.10 the messages around the requests get none, so none is
        // asked of them; a refusal of any message comes before this one.
        let flagged = requests.iter().enumerate().map(|(index, request)| {
            let is_last = index + 1 == count;
            (request, if is_last { NLM_F_ACK } else { 0 })
        });
        let batch = [(begin, 0)].into_iter().chain(flagged).chain([(end, 0)]);
        let bytes = batch.clone().map(|(request, _)| request.wire_len()).sum();
        // A fresh socket has a fresh send buffer.
        self.settle()?;
        self.transport
            .make_room(bytes)
            .map_err(|source| NetlinkError::Send { bytes, source })?;
        let first = self.send(batch)?;
        let mut refusals = Vec::new();
        let mut is_over = false;
        while !is_over {
            self.receive(refusals.len(), count)?;
            for incoming in Messages::new(&self.incoming) {
                let incoming = incoming?;
                self.stats.messages_received += 1;
                let verdict = match incoming.answer {
                    Answer::Verdict(verdict) => verdict,
                    Answer::Overrun => return Err(NetlinkError::Overrun),
                    _ => continue,
                };
                let index = usize::try_from(incoming.sequence.wrapping_sub(first))
                    .ok()
                    .filter(|index| *index <= count + 1);
                let Some(index) = index else {
                    trace!(incoming.sequence, "late answer dropped");
                    continue;
                };
                let request = index.checked_sub(1).filter(|index| *index < count);
                is_over |= request.is_none() || index == count;
                if let Some(error) = verdict {
                    refusals.push(BatchRefusal { request, error });
                }
            }
        }
        // After a refusal of the whole more may come, which no later exchange must meet.
        self.unfinished = !refusals.is_empty();
        if refusals.is_empty() {
            Ok(Ok(()))
        } else {
            Ok(Err(refusals))
        }
    }

    /// One request that is answered by messages and an ACK: a GET that is no dump.
    pub fn get(
        &mut self,
        request: Request,
    ) -> Result<Result<Vec<Reply>, KernelError>, NetlinkError> {
        let mut replies = Vec::new();
        let verdicts = self.exchange(&[request], NLM_F_ACK, |reply| replies.push(reply))?;
        match verdicts.into_iter().next() {
            Some(Err(refusal)) => Ok(Err(refusal)),
            Some(Ok(())) | None => Ok(Ok(replies)),
        }
    }

    /// Dumps a table. A dump that was interrupted by a change is repeated; an empty table is an
    /// empty list.
    pub fn dump(&mut self, request: Request) -> Result<Vec<Reply>, NetlinkError> {
        self.dump_as(request, |kind, payload| Reply {
            kind,
            payload: payload.to_vec(),
        })
    }

    /// Dumps a table and keeps of each answer what `read` makes of its message type and payload.
    pub fn dump_as<T>(
        &mut self,
        request: Request,
        mut read: impl FnMut(u16, &[u8]) -> T,
    ) -> Result<Vec<T>, NetlinkError> {
        let request = [request];
        for attempt in 1..=DUMP_ATTEMPTS {
            let mut replies = Vec::new();
            let is_whole = self.dump_once(&request, &mut |kind, payload| {
                replies.push(read(kind, payload));
            })?;
            if is_whole {
                return Ok(replies);
            }
            debug!(attempt, "dump interrupted by a change");
        }
        Err(NetlinkError::DumpInterrupted {
            attempts: DUMP_ATTEMPTS,
        })
    }

    /// Dumps a table that may be too long to be kept: message type and payload of each answer are
    /// handed over as they come. A dump that was interrupted by a change is repeated, and what it
    /// had so far comes again.
    pub fn dump_each(
        &mut self,
        request: Request,
        on_reply: &mut dyn FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        let request = [request];
        for attempt in 1..=DUMP_ATTEMPTS {
            if self.dump_once(&request, on_reply)? {
                return Ok(());
            }
            debug!(attempt, "dump interrupted by a change");
        }
        Err(NetlinkError::DumpInterrupted {
            attempts: DUMP_ATTEMPTS,
        })
    }

    /// `false` when the table changed meanwhile.
    fn dump_once(
        &mut self,
        request: &[Request; 1],
        on_reply: &mut dyn FnMut(u16, &[u8]),
    ) -> Result<bool, NetlinkError> {
        let sequence = self.send(request.iter().map(|request| (request, NLM_F_DUMP)))?;
        let mut replies = 0;
        let mut interrupted = false;
        let mut end = None;
        while end.is_none() {
            self.receive(replies, replies + 1)?;
            for incoming in Messages::new(&self.incoming) {
                let incoming = incoming?;
                self.stats.messages_received += 1;
                if incoming.sequence != sequence {
                    trace!(incoming.sequence, "late answer dropped");
                    continue;
                }
                interrupted |= incoming.interrupted;
                match incoming.answer {
                    Answer::Data { kind, payload } => {
                        replies += 1;
                        on_reply(kind, payload);
                    }
                    Answer::Done(None) | Answer::Verdict(None) => end = Some(Ok(())),
                    Answer::Done(Some(error)) | Answer::Verdict(Some(error)) => {
                        end = Some(Err(error));
                    }
                    Answer::Overrun => return Err(NetlinkError::Overrun),
                    Answer::Nothing => {}
                }
            }
        }
        self.unfinished = false;
        match end {
            Some(Err(refusal)) => Err(NetlinkError::Refused(refusal)),
            _ => Ok(!interrupted),
        }
    }

    /// One window: all requests in one `sendmsg`, then the answers until each request has its
    /// verdict.
    fn exchange(
        &mut self,
        requests: &[Request],
        flags: u16,
        mut on_reply: impl FnMut(Reply),
    ) -> Result<Vec<Result<(), KernelError>>, NetlinkError> {
        let first = self.send(requests.iter().map(|request| (request, flags)))?;
        let mut verdicts: Vec<Option<Result<(), KernelError>>> = vec![None; requests.len()];
        let mut answered = 0;
        while answered < requests.len() {
            self.receive(answered, requests.len())?;
            for incoming in Messages::new(&self.incoming) {
                let incoming = incoming?;
                self.stats.messages_received += 1;
                let slot = usize::try_from(incoming.sequence.wrapping_sub(first))
                    .ok()
                    .and_then(|index| verdicts.get_mut(index));
                let Some(slot) = slot else {
                    trace!(incoming.sequence, "late answer dropped");
                    continue;
                };
                let verdict = match incoming.answer {
                    Answer::Verdict(verdict) | Answer::Done(verdict) => verdict,
                    Answer::Data { kind, payload } => {
                        on_reply(Reply {
                            kind,
                            payload: payload.to_vec(),
                        });
                        continue;
                    }
                    Answer::Overrun => return Err(NetlinkError::Overrun),
                    Answer::Nothing => continue,
                };
                if slot.is_none() {
                    answered += 1;
                    *slot = Some(verdict.map_or(Ok(()), Err));
                }
            }
        }
        self.unfinished = false;
        Ok(verdicts.into_iter().flatten().collect())
    }

    /// How many of the requests fit into one window.
    fn window(&self, requests: &[Request]) -> usize {
        let queue_limit = self.transport.queue_limit();
        let mut answers = 0;
        let mut bytes = 0;
        let fitting = requests
            .iter()
            .take_while(|request| {
                answers += answer_cost(request);
                bytes += request.wire_len();
                answers <= queue_limit && bytes <= SEND_LIMIT
            })
            .count();
        // A request too long for the window goes alone: the kernel always has room for one answer.
        fitting.max(1)
    }

    /// Drops what an earlier exchange may have left on the socket.
    fn settle(&mut self) -> Result<(), NetlinkError> {
        if self.unfinished {
            self.transport.reset().map_err(NetlinkError::Receive)?;
            self.unfinished = false;
        }
        Ok(())
    }

    /// Sends requests, each with further flags, under consecutive sequence numbers and returns the
    /// first.
    fn send<'a>(
        &mut self,
        requests: impl Iterator<Item = (&'a Request, u16)>,
    ) -> Result<u32, NetlinkError> {
        self.settle()?;
        let first = self.sequence;
        self.outgoing.clear();
        for (request, flags) in requests {
            request.emit(flags | NLM_F_REQUEST, self.sequence, &mut self.outgoing)?;
            self.sequence = self.sequence.wrapping_add(1);
        }
        let bytes = self.outgoing.len();
        let messages = u64::from(self.sequence.wrapping_sub(first));
        trace!(messages, bytes, sequence = first, "netlink send");
        // From here until all answers are read, the socket has something of ours under way.
        self.unfinished = true;
        self.transport
            .send(&self.outgoing)
            .map_err(|source| NetlinkError::Send { bytes, source })?;
        self.stats.round_trips += 1;
        self.stats.messages_sent += messages;
        self.stats.bytes_sent += count(bytes);
        Ok(first)
    }

    /// Receives one datagram into `incoming`.
    fn receive(&mut self, answered: usize, expected: usize) -> Result<(), NetlinkError> {
        use std::io::ErrorKind::{TimedOut, WouldBlock};
        match self.transport.receive(&mut self.incoming) {
            Ok(()) => {
                self.stats.bytes_received += count(self.incoming.len());
                Ok(())
            }
            Err(error) if matches!(error.kind(), WouldBlock | TimedOut) => {
                Err(NetlinkError::TimedOut { answered, expected })
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Err(NetlinkError::Overrun),
            Err(error) => Err(NetlinkError::Receive(error)),
        }
    }
}

/// What the answer to a request may cost in the receive queue, as the kernel counts (`truesize`): a
/// refusal echoes the request; socket buffers come from the slab of the next power of two; the
/// kilobyte covers `struct sk_buff`, `skb_shared_info`, the headers and an explanation.
fn answer_cost(request: &Request) -> usize {
    1024 + 2 * request.wire_len()
}

fn count(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
