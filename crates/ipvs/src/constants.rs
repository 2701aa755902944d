// SPDX-License-Identifier: Apache-2.0
//! The numbers of `include/uapi/linux/ip_vs.h`, under their kernel names.

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

// Tunnel types.
pub(super) const IP_VS_CONN_F_TUNNEL_TYPE_IPIP: u8 = 0;
pub(super) const IP_VS_CONN_F_TUNNEL_TYPE_GUE: u8 = 1;
pub(super) const IP_VS_CONN_F_TUNNEL_TYPE_GRE: u8 = 2;

// Tunnel encapsulation flags.
pub(super) const IP_VS_TUNNEL_ENCAP_FLAG_CSUM: u16 = 1;
pub(super) const IP_VS_TUNNEL_ENCAP_FLAG_REMCSUM: u16 = 2;

// Commands.
pub(super) const IPVS_CMD_NEW_SERVICE: u8 = 1;
pub(super) const IPVS_CMD_SET_SERVICE: u8 = 2;
pub(super) const IPVS_CMD_DEL_SERVICE: u8 = 3;
pub(super) const IPVS_CMD_GET_SERVICE: u8 = 4;
pub(super) const IPVS_CMD_NEW_DEST: u8 = 5;
pub(super) const IPVS_CMD_SET_DEST: u8 = 6;
pub(super) const IPVS_CMD_DEL_DEST: u8 = 7;
pub(super) const IPVS_CMD_GET_DEST: u8 = 8;
pub(super) const IPVS_CMD_NEW_DAEMON: u8 = 9;
pub(super) const IPVS_CMD_DEL_DAEMON: u8 = 10;
pub(super) const IPVS_CMD_GET_DAEMON: u8 = 11;
pub(super) const IPVS_CMD_SET_CONFIG: u8 = 12;
pub(super) const IPVS_CMD_GET_CONFIG: u8 = 13;
pub(super) const IPVS_CMD_SET_INFO: u8 = 14;
pub(super) const IPVS_CMD_GET_INFO: u8 = 15;
pub(super) const IPVS_CMD_ZERO: u8 = 16;
pub(super) const IPVS_CMD_FLUSH: u8 = 17;

// Attributes of commands.
pub(super) const IPVS_CMD_ATTR_SERVICE: u16 = 1;
pub(super) const IPVS_CMD_ATTR_DEST: u16 = 2;
pub(super) const IPVS_CMD_ATTR_DAEMON: u16 = 3;
pub(super) const IPVS_CMD_ATTR_TIMEOUT_TCP: u16 = 4;
pub(super) const IPVS_CMD_ATTR_TIMEOUT_TCP_FIN: u16 = 5;
pub(super) const IPVS_CMD_ATTR_TIMEOUT_UDP: u16 = 6;

// Attributes of a service.
pub(super) const IPVS_SVC_ATTR_AF: u16 = 1;
pub(super) const IPVS_SVC_ATTR_PROTOCOL: u16 = 2;
pub(super) const IPVS_SVC_ATTR_ADDR: u16 = 3;
pub(super) const IPVS_SVC_ATTR_PORT: u16 = 4;
pub(super) const IPVS_SVC_ATTR_FWMARK: u16 = 5;
pub(super) const IPVS_SVC_ATTR_SCHED_NAME: u16 = 6;
pub(super) const IPVS_SVC_ATTR_FLAGS: u16 = 7;
pub(super) const IPVS_SVC_ATTR_TIMEOUT: u16 = 8;
pub(super) const IPVS_SVC_ATTR_NETMASK: u16 = 9;
pub(super) const IPVS_SVC_ATTR_STATS: u16 = 10;
pub(super) const IPVS_SVC_ATTR_PE_NAME: u16 = 11;
pub(super) const IPVS_SVC_ATTR_STATS64: u16 = 12;

// Attributes of a destination.
pub(super) const IPVS_DEST_ATTR_ADDR: u16 = 1;
pub(super) const IPVS_DEST_ATTR_PORT: u16 = 2;
pub(super) const IPVS_DEST_ATTR_FWD_METHOD: u16 = 3;
pub(super) const IPVS_DEST_ATTR_WEIGHT: u16 = 4;
pub(super) const IPVS_DEST_ATTR_U_THRESH: u16 = 5;
pub(super) const IPVS_DEST_ATTR_L_THRESH: u16 = 6;
pub(super) const IPVS_DEST_ATTR_ACTIVE_CONNS: u16 = 7;
pub(super) const IPVS_DEST_ATTR_INACT_CONNS: u16 = 8;
pub(super) const IPVS_DEST_ATTR_PERSIST_CONNS: u16 = 9;
pub(super) const IPVS_DEST_ATTR_STATS: u16 = 10;
pub(super) const IPVS_DEST_ATTR_ADDR_FAMILY: u16 = 11;
pub(super) const IPVS_DEST_ATTR_STATS64: u16 = 12;
pub(super) const IPVS_DEST_ATTR_TUN_TYPE: u16 = 13;
pub(super) const IPVS_DEST_ATTR_TUN_PORT: u16 = 14;
pub(super) const IPVS_DEST_ATTR_TUN_FLAGS: u16 = 15;

// Attributes of statistics, 32-bit and 64-bit.
pub(super) const IPVS_STATS_ATTR_CONNS: u16 = 1;
pub(super) const IPVS_STATS_ATTR_INPKTS: u16 = 2;
pub(super) const IPVS_STATS_ATTR_OUTPKTS: u16 = 3;
pub(super) const IPVS_STATS_ATTR_INBYTES: u16 = 4;
pub(super) const IPVS_STATS_ATTR_OUTBYTES: u16 = 5;
pub(super) const IPVS_STATS_ATTR_CPS: u16 = 6;
pub(super) const IPVS_STATS_ATTR_INPPS: u16 = 7;
pub(super) const IPVS_STATS_ATTR_OUTPPS: u16 = 8;
pub(super) const IPVS_STATS_ATTR_INBPS: u16 = 9;
pub(super) const IPVS_STATS_ATTR_OUTBPS: u16 = 10;
pub(super) const IPVS_STATS_ATTR_PAD: u16 = 11;

// Attributes of the answer to IPVS_CMD_GET_INFO.
pub(super) const IPVS_INFO_ATTR_VERSION: u16 = 1;
pub(super) const IPVS_INFO_ATTR_CONN_TAB_SIZE: u16 = 2;
