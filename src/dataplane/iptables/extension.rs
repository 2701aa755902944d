// SPDX-License-Identifier: Apache-2.0
//! Whether the kernel has a match that rules of iptables use. Asks as `iptables-nft` does
//! (`nft_compat`), without a program; the modules are those of both backends.

use netlink_pipeline::attribute::Writer;
use netlink_pipeline::{KernelErrorKind, Request, Socket};
use netlink_sys::protocols::NETLINK_NETFILTER;

// include/uapi/linux/netfilter/nfnetlink.h and nf_tables_compat.h.
const NFNL_SUBSYS_NFT_COMPAT: u16 = 11;
const NFNL_MSG_COMPAT_GET: u16 = 0;
const NFTA_COMPAT_NAME: u16 = 1;
const NFTA_COMPAT_REV: u16 = 2;
const NFTA_COMPAT_TYPE: u16 = 3;
/// `AF_INET`, whose matches serve both families.
const AF_INET: u8 = 2;
/// Not a target.
const MATCH: u32 = 0;

/// Whether the kernel says that it lacks a match, `set` of module `xt_set` for one. A kernel that
/// cannot be asked may have it. Asking loads the module.
pub fn is_missing(name: &str) -> bool {
    let ask = || {
        // `struct nfgenmsg`
        let mut writer = Writer::after(&[AF_INET, 0, 0, 0]);
        writer.string(NFTA_COMPAT_NAME, name);
        writer.u32_be(NFTA_COMPAT_REV, 0);
        writer.u32_be(NFTA_COMPAT_TYPE, MATCH);
        let request = Request {
            kind: NFNL_SUBSYS_NFT_COMPAT << 8 | NFNL_MSG_COMPAT_GET,
            flags: 0,
            payload: writer.finish().ok()?,
        };
        let answer = Socket::open(NETLINK_NETFILTER).ok()?.get(request).ok()?;
        // Another refusal is about the revision.
        Some(answer.is_err_and(|refusal| refusal.kind == KernelErrorKind::NotFound))
    };
    ask().unwrap_or(false)
}
