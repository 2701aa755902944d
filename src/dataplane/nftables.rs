// SPDX-License-Identifier: Apache-2.0
//! The tables of kube-proxy's nftables mode: whether they are there, and their end. Both are rare, so each has a socket of
//! its own.

use netlink_sys::protocols::NETLINK_NETFILTER;

use kpr_core::model::IpFamily;
use kpr_core::plan::step::NFTABLES_TABLE;
use netlink_pipeline::attribute::{AttributeTooLong, Writer};
use netlink_pipeline::{KernelError, KernelErrorKind, NetlinkError, Request, Socket};

// include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h.
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_GETTABLE: u16 = (NFNL_SUBSYS_NFTABLES << 8) | 1;
const NFT_MSG_DELTABLE: u16 = (NFNL_SUBSYS_NFTABLES << 8) | 2;
const NFTA_TABLE_NAME: u16 = 1;

/// Why the kernel was not asked, or did not answer as wanted.
#[derive(Debug, thiserror::Error)]
pub enum NftablesError {
    #[error("cannot talk to nftables")]
    Netlink(#[from] NetlinkError),
    #[error("the kernel refuses nftables table {NFTABLES_TABLE} of {family}")]
    Refused {
        family: IpFamily,
        #[source]
        source: KernelError,
    },
    #[error("name of an nftables table")]
    Name(#[from] AttributeTooLong),
}

/// Whether kube-proxy's table of a family is there. A kernel without nftables has none.
pub fn has_table(family: IpFamily) -> Result<bool, NftablesError> {
    let mut socket = Socket::open(NETLINK_NETFILTER)?;
    match socket.get(request(NFT_MSG_GETTABLE, family)?)? {
        Ok(_) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(source) => Err(NftablesError::Refused { family, source }),
    }
}

/// Deletes it with all that is in it. One that is not there is deleted already.
pub fn delete_table(family: IpFamily) -> Result<(), NftablesError> {
    let mut socket = Socket::open(NETLINK_NETFILTER)?;
    let verdict = socket.transact_in_batch([
        end_of_batch(NFNL_MSG_BATCH_BEGIN),
        request(NFT_MSG_DELTABLE, family)?,
        end_of_batch(NFNL_MSG_BATCH_END),
    ])?;
    match verdict {
        Err(source) if !is_absent(&source) => Err(NftablesError::Refused { family, source }),
        _ => Ok(()),
    }
}

/// nfnetlink does not know the subsystem where the kernel has no nftables.
fn is_absent(error: &KernelError) -> bool {
    use KernelErrorKind::{Invalid, NotFound, Unsupported};
    matches!(error.kind, NotFound | Unsupported | Invalid)
}

fn request(kind: u16, family: IpFamily) -> Result<Request, AttributeTooLong> {
    // `struct nfgenmsg`: family, version, resource. The families of netfilter have the numbers of sockets.
    let of = match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    };
    let mut payload = Writer::after(&[of, 0, 0, 0]);
    payload.string(NFTA_TABLE_NAME, NFTABLES_TABLE);
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

    /// `strace -e trace=sendmsg -xx nft delete table ip6 kube-proxy`, without the socket's own headers.
    #[test]
    fn a_deletion_is_what_nft_sends() {
        assert_eq!(end_of_batch(NFNL_MSG_BATCH_BEGIN).payload, b"\0\0\0\x0a");
        let request = request(NFT_MSG_DELTABLE, IpFamily::V6).unwrap();
        assert_eq!(request.kind, 0x0a02);
        assert_eq!(
            request.payload,
            b"\x0a\0\0\0\x0f\0\x01\0kube-proxy\0\0".as_slice()
        );
    }
}
