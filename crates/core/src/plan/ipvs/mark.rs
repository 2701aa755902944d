// SPDX-License-Identifier: Apache-2.0
//! PURE: the numbers used as our firewall marks. [`crate::plan::ipvs::marks`] assigns them.

use crate::model::Protocol;

/// Set in all of our marks. They are 0x1000 to 0x1fff: beside the bits that portmap (0x2000),
/// kube-proxy (0x4000), kubelet (0x8000), kube-router (0x10000, 0x20000) and Calico (0xffff0000)
/// use. `docs/neighbours.md` says who uses which.
const MARKER: u32 = 0x1000;
/// The bits that distinguish our marks from each other.
const SLOTS: u32 = 0x0fff;
/// The slot that no Service gets.
const PASS: u16 = 0x0fff;
/// Shift of the marks if the masquerade bit is among the lower ones.
const SHIFT: u32 = 16;

/// The marks of earlier versions, which a take-over may find.
const OLD_MARKER: u32 = 0x2000;
const OLD_SLOTS: u32 = 0x1fff;

/// Values and masks by which rules match our marks.
///
/// The kernel compares whole marks when it looks for a virtual server, so at that moment no bit of
/// others may be set. Before and after, others may set theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkRange {
    shift: u32,
}

impl MarkRange {
    /// Wherever the masquerade bit is.
    const ALL: [Self; 2] = [Self { shift: 0 }, Self { shift: SHIFT }];

    /// `masquerade_mark` is the bit that marks packets to masquerade.
    pub const fn beside(masquerade_mark: u32) -> Self {
        let shift = if masquerade_mark & (MARKER | SLOTS) == 0 {
            0
        } else {
            SHIFT
        };
        Self { shift }
    }

    /// The value of a mark of ours, seen through [`Self::marker`] or [`Self::mask`].
    pub const fn value(self) -> u32 {
        self.marker()
    }

    /// The bit that shows a mark of ours, whatever bits of others are set.
    pub const fn marker(self) -> u32 {
        MARKER << self.shift
    }

    /// All bits but those of the slot: matches a mark of ours without any bit of others.
    pub const fn mask(self) -> u32 {
        !(SLOTS << self.shift)
    }

    /// The bits that distinguish our marks from each other.
    pub const fn slots(self) -> u32 {
        SLOTS << self.shift
    }

    /// The bits that are not ours.
    pub const fn foreign(self) -> u32 {
        !((MARKER | SLOTS) << self.shift)
    }

    pub const fn contains(self, mark: u32) -> bool {
        mark & self.mask() == self.value()
    }

    /// The mark of packets that IPVS is to leave alone.
    pub const fn pass(self) -> u32 {
        self.mark(PASS)
    }

    pub(super) const fn mark(self, slot: u16) -> u32 {
        (MARKER | slot as u32) << self.shift
    }
}

/// The bits that setting a mark of ours changes. The others are somebody else's.
pub const fn bits_of(mark: u32) -> u32 {
    if mark >> SHIFT == 0 {
        MARKER | SLOTS
    } else {
        (MARKER | SLOTS) << SHIFT
    }
}

/// The slots of a protocol: the first and their number. A mark determines its protocol, because
/// that determines how its virtual server drains.
pub(super) const fn slots_of(protocol: Protocol) -> (u16, u16) {
    match protocol {
        Protocol::Tcp => (0, 0x800),
        Protocol::Udp => (0x800, 0x400),
        Protocol::Sctp => (0xc00, 0x3ff),
    }
}

/// Whether it is the mark of packets that IPVS is to leave alone.
pub fn is_pass(mark: u32) -> bool {
    MarkRange::ALL.iter().any(|range| mark == range.pass())
}

/// The protocol of a mark, if it is one of ours.
pub fn protocol(mark: u32) -> Option<Protocol> {
    let mut ranges = MarkRange::ALL.into_iter();
    let Some(range) = ranges.find(|range| range.contains(mark)) else {
        return old_protocol(mark);
    };
    let slot = (mark >> range.shift) & SLOTS;
    if slot == u32::from(PASS) {
        return Some(Protocol::Tcp);
    }
    Protocol::ALL.into_iter().find(|protocol| {
        let (first, count) = slots_of(*protocol);
        (u32::from(first)..u32::from(first) + u32::from(count)).contains(&slot)
    })
}

/// The protocol of a mark of an earlier version.
fn old_protocol(mark: u32) -> Option<Protocol> {
    let shift = [0, SHIFT]
        .into_iter()
        .find(|shift| mark & !(OLD_SLOTS << shift) == OLD_MARKER << shift)?;
    Some(match (mark >> shift) & OLD_SLOTS {
        ..0x1000 => Protocol::Tcp,
        0x1000..0x1800 => Protocol::Udp,
        _ => Protocol::Sctp,
    })
}
