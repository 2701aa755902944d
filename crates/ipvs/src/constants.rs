// SPDX-License-Identifier: Apache-2.0
//! The numbers of `include/uapi/linux/ip_vs.h`, under their kernel names. Those of
//! attributes and commands are in the tables of the types that stand for them.

/// Name of the generic netlink family.
pub(super) const IPVS_GENL_NAME: &str = "IPVS";
/// Version of the generic netlink family.
pub(super) const IPVS_GENL_VERSION: u8 = 1;

/// Bytes of a scheduler's name with its NUL.
pub(super) const IP_VS_SCHEDNAME_MAXLEN: usize = 16;

// Virtual service flags.
pub(super) const IP_VS_SVC_F_PERSISTENT: u32 = 0x0001;
pub(super) const IP_VS_SVC_F_HASHED: u32 = 0x0002;
pub(super) const IP_VS_SVC_F_ONEPACKET: u32 = 0x0004;
pub(super) const IP_VS_SVC_F_SCHED1: u32 = 0x0008;
pub(super) const IP_VS_SVC_F_SCHED2: u32 = 0x0010;
pub(super) const IP_VS_SVC_F_SCHED3: u32 = 0x0020;

// Forwarding methods: the low bits of a connection's flags.
pub(super) const IP_VS_CONN_F_FWD_MASK: u32 = 0x0007;
pub(super) const IP_VS_CONN_F_MASQ: u32 = 0x0000;
pub(super) const IP_VS_CONN_F_LOCALNODE: u32 = 0x0001;
pub(super) const IP_VS_CONN_F_TUNNEL: u32 = 0x0002;
pub(super) const IP_VS_CONN_F_DROUTE: u32 = 0x0003;
pub(super) const IP_VS_CONN_F_BYPASS: u32 = 0x0004;

// Tunnel encapsulation flags.
pub(super) const IP_VS_TUNNEL_ENCAP_FLAG_CSUM: u16 = 1;
pub(super) const IP_VS_TUNNEL_ENCAP_FLAG_REMCSUM: u16 = 2;

// Attributes of commands.
pub(super) const IPVS_CMD_ATTR_SERVICE: u16 = 1;
pub(super) const IPVS_CMD_ATTR_DEST: u16 = 2;
pub(super) const IPVS_CMD_ATTR_DAEMON: u16 = 3;
pub(super) const IPVS_CMD_ATTR_TIMEOUT_TCP: u16 = 4;
pub(super) const IPVS_CMD_ATTR_TIMEOUT_TCP_FIN: u16 = 5;
pub(super) const IPVS_CMD_ATTR_TIMEOUT_UDP: u16 = 6;

// Attributes of the answer to IPVS_CMD_GET_INFO.
pub(super) const IPVS_INFO_ATTR_VERSION: u16 = 1;
pub(super) const IPVS_INFO_ATTR_CONN_TAB_SIZE: u16 = 2;
