// SPDX-License-Identifier: Apache-2.0
//! PURE: the numbers used as our firewall marks. [`crate::plan::ipvs::marks`] assigns them.

use crate::model::Protocol;

/// Marks are 0x2000 to 0x3fff: below the bits that kube-proxy (0x4000), kubelet (0x8000) and Calico
/// (0xffff0000) use. The kernel compares whole marks, so no other bit may be set.
const FIRST: u32 = 0x2000;
/// The bits that distinguish our marks from each other.
const SLOTS: u32 = 0x1fff;
/// Shift of the marks if the masquerade bit is among the lower ones.
const SHIFT: u32 = 16;

/// Value and mask by which rules match our marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkRange {
    shift: u32,
}

impl MarkRange {
    /// `masquerade_mark` is the bit that marks packets to masquerade.
    pub const fn beside(masquerade_mark: u32) -> Self {
        let shift = if masquerade_mark & (FIRST | SLOTS) == 0 {
            0
        } else {
            SHIFT
        };
        Self { shift }
    }

    pub const fn value(self) -> u32 {
        FIRST << self.shift
    }

    pub const fn mask(self) -> u32 {
        !(SLOTS << self.shift)
    }

    pub const fn contains(self, mark: u32) -> bool {
        mark & self.mask() == self.value()
    }

    pub(super) const fn mark(self, slot: u16) -> u32 {
        (FIRST | slot as u32) << self.shift
    }
}

/// The slots of a protocol: the first and their number. A mark determines its protocol, because
/// that determines how its virtual server drains.
pub(super) const fn slots_of(protocol: Protocol) -> (u16, u16) {
    match protocol {
        Protocol::Tcp => (0, 0x1000),
        Protocol::Udp => (0x1000, 0x800),
        Protocol::Sctp => (0x1800, 0x800),
    }
}

/// The protocol of a mark, if it is one of ours.
pub fn protocol(mark: u32) -> Option<Protocol> {
    let range = [MarkRange { shift: 0 }, MarkRange { shift: SHIFT }]
        .into_iter()
        .find(|range| range.contains(mark))?;
    let slot = (mark >> range.shift) & SLOTS;
    Protocol::ALL.into_iter().find(|protocol| {
        let (first, count) = slots_of(*protocol);
        (u32::from(first)..u32::from(first) + u32::from(count)).contains(&slot)
    })
}
