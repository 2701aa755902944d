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

// enum ipset_errno, and the private ones of the hash and bitmap types
// (include/uapi/linux/netfilter/ipset/ip_set_hash.h, ip_set_bitmap.h).
pub(super) const IPSET_ERR_PROTOCOL: i32 = 4097;
pub(super) const IPSET_ERR_FIND_TYPE: i32 = 4098;
pub(super) const IPSET_ERR_MAX_SETS: i32 = 4099;
pub(super) const IPSET_ERR_BUSY: i32 = 4100;
pub(super) const IPSET_ERR_EXIST_SETNAME2: i32 = 4101;
pub(super) const IPSET_ERR_TYPE_MISMATCH: i32 = 4102;
pub(super) const IPSET_ERR_EXIST: i32 = 4103;
pub(super) const IPSET_ERR_INVALID_CIDR: i32 = 4104;
pub(super) const IPSET_ERR_INVALID_NETMASK: i32 = 4105;
pub(super) const IPSET_ERR_INVALID_FAMILY: i32 = 4106;
pub(super) const IPSET_ERR_TIMEOUT: i32 = 4107;
pub(super) const IPSET_ERR_REFERENCED: i32 = 4108;
pub(super) const IPSET_ERR_IPADDR_IPV4: i32 = 4109;
pub(super) const IPSET_ERR_IPADDR_IPV6: i32 = 4110;
pub(super) const IPSET_ERR_COUNTER: i32 = 4111;
pub(super) const IPSET_ERR_COMMENT: i32 = 4112;
pub(super) const IPSET_ERR_INVALID_MARKMASK: i32 = 4113;
pub(super) const IPSET_ERR_SKBINFO: i32 = 4114;
/// `IPSET_ERR_HASH_FULL` of hash sets, `IPSET_ERR_BITMAP_RANGE` of bitmaps.
pub(super) const IPSET_ERR_TYPE_SPECIFIC: i32 = 4352;
