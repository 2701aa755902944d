// SPDX-License-Identifier: Apache-2.0
//! Netlink framing: `struct nlmsghdr`, `struct nlmsgerr`, the end of a dump. Pure; reads any bytes.

use super::attribute::{self, align};
use super::error::{KernelError, NetlinkError};

/// Bytes of `struct nlmsghdr`.
pub(super) const HEADER_LEN: usize = 16;

// Flags and types of include/uapi/linux/netlink.h.
pub(super) const NLM_F_REQUEST: u16 = 0x01;
pub(super) const NLM_F_ACK: u16 = 0x04;
pub(super) const NLM_F_DUMP_INTR: u16 = 0x10;
/// `NLM_F_ROOT | NLM_F_MATCH`.
pub(super) const NLM_F_DUMP: u16 = 0x300;
/// In an ACK: the request is not echoed.
const NLM_F_CAPPED: u16 = 0x100;
/// In an ACK: attributes follow.
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;

// Of an extended ACK: its text, and where in the request the kernel found fault.
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSGERR_ATTR_OFFS: u16 = 2;

/// One message to the kernel, without its header's length, sequence and port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags` that the operation needs, such as `NLM_F_CREATE`. The socket adds
    /// `NLM_F_REQUEST`, `NLM_F_ACK` and `NLM_F_DUMP`.
    pub flags: u16,
    /// What follows the header: the family's own header and attributes.
    pub payload: Vec<u8>,
}

impl Request {
    /// Bytes on the wire, padded.
    pub(super) fn wire_len(&self) -> usize {
        align(HEADER_LEN + self.payload.len())
    }

    /// Whether it would not be sent.
    pub(super) fn is_too_long(&self) -> bool {
        HEADER_LEN + self.payload.len() > MAX_REQUEST
    }

    /// Appends the message to `buffer`, padded so that another may follow.
    pub(super) fn emit(
        &self,
        flags: u16,
        sequence: u32,
        buffer: &mut Vec<u8>,
    ) -> Result<(), NetlinkError> {
        let length = HEADER_LEN + self.payload.len();
        let wire_length = u32::try_from(length)
            .ok()
            .filter(|_| !self.is_too_long())
            .ok_or(NetlinkError::TooLong { bytes: length })?;
        let end = buffer.len() + self.wire_len();
        buffer.extend_from_slice(&wire_length.to_ne_bytes());
        buffer.extend_from_slice(&self.kind.to_ne_bytes());
        buffer.extend_from_slice(&(self.flags | flags).to_ne_bytes());
        buffer.extend_from_slice(&sequence.to_ne_bytes());
        // Port 0: the kernel knows which socket it hears.
        buffer.extend_from_slice(&0_u32.to_ne_bytes());
        buffer.extend_from_slice(&self.payload);
        buffer.resize(end, 0);
        Ok(())
    }
}

/// The longest request. The kernel takes up to the send buffer (208 KiB by default); an attribute
/// ends at 64 KiB, and the echo of a refused request must fit into our receive buffer.
pub(super) const MAX_REQUEST: usize = 128 * 1024;

/// One message from the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// `nlmsg_type`.
    pub kind: u16,
    /// What follows the header: the family's own header and attributes.
    pub payload: Vec<u8>,
}

/// A message of a datagram, classified.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// `NLMSG_ERROR`: `None` is an ACK.
    Verdict(Option<KernelError>),
    /// `NLMSG_DONE`: the end of a dump, with the error that ended it.
    Done(Option<KernelError>),
    /// `NLMSG_OVERRUN`: data was lost.
    Overrun,
    /// `NLMSG_NOOP`.
    Nothing,
    /// A message of the family.
    Data { kind: u16, payload: &'a [u8] },
}

/// A message with what the exchange needs of its header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Incoming<'a> {
    pub(super) sequence: u32,
    /// `NLM_F_DUMP_INTR`: the table changed while it was dumped.
    pub(super) interrupted: bool,
    pub(super) answer: Answer<'a>,
}

/// The messages of one datagram.
#[derive(Debug)]
pub(super) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(super) const fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Incoming<'a>, NetlinkError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match split(self.rest) {
            Ok((incoming, rest)) => {
                self.rest = rest;
                Some(Ok(incoming))
            }
            Err(error) => {
                self.rest = &[];
                Some(Err(error))
            }
        }
    }
}

/// Reads the first message and returns what follows it.
fn split(bytes: &[u8]) -> Result<(Incoming<'_>, &[u8]), NetlinkError> {
    let (header, _) = bytes
        .split_first_chunk::<HEADER_LEN>()
        .ok_or(malformed("a message is shorter than its header"))?;
    let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
    let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    let kind = u16::from_ne_bytes([k0, k1]);
    let flags = u16::from_ne_bytes([f0, f1]);
    let payload = bytes
        .get(HEADER_LEN..length)
        .ok_or(malformed("a message's length does not fit"))?;
    // The last message of a datagram may come without padding.
    let rest = bytes.get(align(length)..).unwrap_or(&[]);
    let answer = match kind {
        NLMSG_NOOP => Answer::Nothing,
        NLMSG_OVERRUN => Answer::Overrun,
        NLMSG_ERROR => Answer::Verdict(verdict(payload, flags)?),
        NLMSG_DONE => Answer::Done(done(payload, flags)),
        kind => Answer::Data { kind, payload },
    };
    let incoming = Incoming {
        sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
        interrupted: flags & NLM_F_DUMP_INTR != 0,
        answer,
    };
    Ok((incoming, rest))
}

/// `struct nlmsgerr`: the errno, the request's header, its payload unless capped, then attributes.
fn verdict(payload: &[u8], flags: u16) -> Result<Option<KernelError>, NetlinkError> {
    let (code, rest) = payload
        .split_first_chunk::<4>()
        .ok_or(malformed("an ACK is shorter than its code"))?;
    let Some(errno) = errno(*code) else {
        return Ok(None);
    };
    let (header, rest) = rest
        .split_first_chunk::<HEADER_LEN>()
        .ok_or(malformed("a refusal lacks the request's header"))?;
    let [l0, l1, l2, l3, ..] = *header;
    let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    let (echoed, attributes) = if flags & NLM_F_CAPPED == 0 {
        let echoed_len = length.saturating_sub(HEADER_LEN).min(rest.len());
        let attributes = rest.get(align(echoed_len)..).unwrap_or(&[]);
        (rest.get(..echoed_len), attributes)
    } else {
        (None, rest)
    };
    let mut error = KernelError::from_errno(errno);
    explain(&mut error, flags, attributes);
    error.echoed = echoed
        .filter(|echoed| !echoed.is_empty())
        .map(<[u8]>::to_vec);
    Ok(Some(error))
}

/// The end of a dump carries an errno since Linux 4.x; older kernels and some families leave it
/// out.
fn done(payload: &[u8], flags: u16) -> Option<KernelError> {
    let (code, attributes) = payload.split_first_chunk::<4>()?;
    let mut error = KernelError::from_errno(errno(*code)?);
    explain(&mut error, flags, attributes);
    Some(error)
}

/// The kernel sends errnos negated; zero is success. A positive one would be a kernel bug and is
/// read as a failure all the same.
fn errno(code: [u8; 4]) -> Option<i32> {
    match i32::from_ne_bytes(code) {
        0 => None,
        code => Some(code.checked_abs().unwrap_or(i32::MAX)),
    }
}

/// Adds what an extended ACK says.
fn explain(error: &mut KernelError, flags: u16, attributes: &[u8]) {
    if flags & NLM_F_ACK_TLVS == 0 {
        return;
    }
    for attribute in attribute::list(attributes).map_while(Result::ok) {
        match attribute.kind() {
            NLMSGERR_ATTR_MSG => error.message = Some(attribute.string()),
            NLMSGERR_ATTR_OFFS => error.offset = attribute.u32("NLMSGERR_ATTR_OFFS").ok(),
            _ => {}
        }
    }
}

const fn malformed(reason: &'static str) -> NetlinkError {
    NetlinkError::Malformed { reason }
}
