// SPDX-License-Identifier: Apache-2.0
//! Numbers of `include/uapi/linux/netfilter/ipset/ip_set.h` under their kernel
//! names. Those of attributes are in the tables of the types that stand for them.

/// The newest protocol that we speak. Kernels since 4.16 have it.
pub(super) const IPSET_PROTOCOL: u8 = 7;
/// The oldest protocol that we speak; the two differ in commands that we do not use.
pub(super) const IPSET_PROTOCOL_MIN: u8 = 6;

/// `NFNL_SUBSYS_IPSET` of `linux/netfilter/nfnetlink.h`: the upper byte of a message's type.
pub(super) const NFNL_SUBSYS_IPSET: u8 = 6;
/// `NFNETLINK_V0`.
pub(super) const NFNETLINK_V0: u8 = 0;

// enum ipset_cmd
pub(super) const IPSET_CMD_PROTOCOL: u8 = 1;
pub(super) const IPSET_CMD_CREATE: u8 = 2;
pub(super) const IPSET_CMD_DESTROY: u8 = 3;
pub(super) const IPSET_CMD_FLUSH: u8 = 4;
pub(super) const IPSET_CMD_SWAP: u8 = 6;
pub(super) const IPSET_CMD_LIST: u8 = 7;
pub(super) const IPSET_CMD_ADD: u8 = 9;
pub(super) const IPSET_CMD_DEL: u8 = 10;
pub(super) const IPSET_CMD_TYPE: u8 = 13;

// enum ipset_cmd_flags
pub(super) const IPSET_FLAG_LIST_SETNAME: u32 = 1 << 1;
pub(super) const IPSET_FLAG_LIST_HEADER: u32 = 1 << 2;

// enum ipset_cadt_flags
pub(super) const IPSET_FLAG_WITH_SKBINFO: u32 = 1 << 6;
