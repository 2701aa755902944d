// SPDX-License-Identifier: Apache-2.0
//! The tables of kube-proxy's nftables mode: whether they exist, and how to delete them; and those
//! of `iptables-nft`, where that cannot list them ([`listing`]). All of it is rare, so that each
//! call opens its own socket.

pub mod listing;

use netlink_sys::protocols::NETLINK_NETFILTER;

use kpr_core::model::IpFamily;
use kpr_core::plan::leftovers::NFTABLES_TABLE;
use netlink_pipeline::attribute::{AttributeTooLong, DecodeError, Writer};
use netlink_pipeline::{KernelError, KernelErrorKind, NetlinkError, Request, Socket};

// include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h.
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_GETTABLE: u16 = kind(1);
const NFT_MSG_DELTABLE: u16 = kind(2);
const NFTA_TABLE_NAME: u16 = 1;

/// A type of nftables message as netlink has it.
pub(super) const fn kind(message: u16) -> u16 {
    (NFNL_SUBSYS_NFTABLES << 8) | message
}

/// `struct nfgenmsg` of an address family (`AF_*`): family, version, resource.
pub(super) const fn nfgenmsg(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// A table could not be looked up or deleted.
#[derive(Debug, thiserror::Error)]
pub enum NftablesError {
    #[error("netlink exchange with nftables failed")]
    Netlink(#[from] NetlinkError),
    #[error("the kernel rejected a request for {family} nftables table {table}")]
    Refused {
        family: IpFamily,
        table: String,
        #[source]
        source: KernelError,
    },
    #[error("request about an nftables table is too long")]
    TooLong(#[from] AttributeTooLong),
    #[error("cannot decode an answer of nftables")]
    Decode(#[from] DecodeError),
}

/// The table in which the CNI plugin `portmap` publishes ports where it does not use iptables.
const HOST_PORTS: &str = "cni_hostport";

/// Whether kube-proxy's table of a family exists. A kernel without nftables has none.
pub fn has_table(family: IpFamily) -> Result<bool, NftablesError> {
    has_named(NFTABLES_TABLE, family)
}

/// Whether the CNI plugin `portmap` publishes ports by nftables.
pub fn publishes_ports(family: IpFamily) -> Result<bool, NftablesError> {
    has_named(HOST_PORTS, family)
}

fn has_named(table: &str, family: IpFamily) -> Result<bool, NftablesError> {
    let mut socket = Socket::open(NETLINK_NETFILTER)?;
    match socket.get(request(NFT_MSG_GETTABLE, table, family)?)? {
        Ok(_) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(source) => Err(refused(family, source)),
    }
}

/// Deletes kube-proxy's table of a family with its contents. One that does not exist is success.
pub fn delete_table(family: IpFamily) -> Result<(), NftablesError> {
    match transact(&[request(NFT_MSG_DELTABLE, NFTABLES_TABLE, family)?])? {
        Err(source) if !is_absent(&source) => Err(refused(family, source)),
        _ => Ok(()),
    }
}

/// Makes one transaction of the requests. The verdict is the first refusal, if there is one.
fn transact(requests: &[Request]) -> Result<Result<(), KernelError>, NetlinkError> {
    let (begin, end) = (
        end_of_batch(NFNL_MSG_BATCH_BEGIN),
        end_of_batch(NFNL_MSG_BATCH_END),
    );
    let verdict = Socket::open(NETLINK_NETFILTER)?.transact_in_batch(&begin, requests, &end)?;
    let refusals = verdict.err().into_iter().flatten();
    let first = refusals.map(|refusal| refusal.error).next();
    Ok(first.map_or(Ok(()), Err))
}

fn refused(family: IpFamily, source: KernelError) -> NftablesError {
    NftablesError::Refused {
        family,
        table: NFTABLES_TABLE.to_owned(),
        source,
    }
}

/// `AF_INET` or `AF_INET6`.
const fn address_family(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    }
}

/// nfnetlink does not know the subsystem where the kernel has no nftables.
fn is_absent(error: &KernelError) -> bool {
    use KernelErrorKind::{Invalid, NotFound, Unsupported};
    matches!(error.kind, NotFound | Unsupported | Invalid)
}

fn request(kind: u16, table: &str, family: IpFamily) -> Result<Request, AttributeTooLong> {
    let mut payload = Writer::after(&nfgenmsg(address_family(family)));
    payload.string(NFTA_TABLE_NAME, table);
    Ok(Request {
        kind,
        flags: 0,
        payload: payload.finish()?,
    })
}

/// The resource is the subsystem, in network order.
fn end_of_batch(kind: u16) -> Request {
    let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    Request {
        kind,
        flags: 0,
        payload: vec![0, 0, high, low],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `strace -e trace=sendmsg -xx nft delete table ip6 kube-proxy`, without the socket's own
    /// headers.
    #[test]
    fn a_deletion_is_what_nft_sends() {
        assert_eq!(end_of_batch(NFNL_MSG_BATCH_BEGIN).payload, b"\0\0\0\x0a");
        let request = request(NFT_MSG_DELTABLE, NFTABLES_TABLE, IpFamily::V6).unwrap();
        assert_eq!(request.kind, 0x0a02);
        assert_eq!(
            request.payload,
            b"\x0a\0\0\0\x0f\0\x01\0kube-proxy\0\0".as_slice()
        );
    }
}
