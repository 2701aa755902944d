// SPDX-License-Identifier: Apache-2.0
//! Named packet counters of the kernel (`nfnetlink_acct`), which rules increment.

use netlink_packet_core::{NLM_F_CREATE, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;

use netlink_pipeline::attribute::{AttributeTooLong, Writer};
use netlink_pipeline::{KernelError, KernelErrorKind, NetlinkError, Reply, Request, Socket};

// include/uapi/linux/netfilter/nfnetlink.h and nfnetlink_acct.h.
const NFNL_SUBSYS_ACCT: u16 = 7;
const NFNL_MSG_ACCT_NEW: u16 = NFNL_SUBSYS_ACCT << 8;
const NFNL_MSG_ACCT_GET: u16 = NFNL_MSG_ACCT_NEW | 1;
const NFACCT_NAME: u16 = 1;
const NFACCT_PKTS: u16 = 2;

/// `struct nfgenmsg`.
const HEADER: [u8; 4] = [0; 4];

/// Why a counter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NfacctError {
    #[error("netlink exchange with nfnetlink_acct failed")]
    Netlink(#[from] NetlinkError),
    /// Also the answer of a kernel without the subsystem.
    #[error("the kernel rejected packet counter {name}")]
    Refused {
        name: &'static str,
        #[source]
        source: KernelError,
    },
    #[error("request about a packet counter is too long")]
    TooLong(#[from] AttributeTooLong),
}

/// The packet counters of this network namespace.
#[derive(Debug)]
pub struct PacketCounters {
    socket: Socket,
}

impl PacketCounters {
    pub fn open() -> Result<Self, NfacctError> {
        Ok(Self {
            socket: Socket::open(NETLINK_NETFILTER)?,
        })
    }

    /// Creates a counter; one that exists keeps its count.
    pub fn ensure(&mut self, name: &'static str) -> Result<(), NfacctError> {
        let request = request(NFNL_MSG_ACCT_NEW, NLM_F_CREATE, name)?;
        match self.socket.get(request)? {
            Ok(_) => Ok(()),
            Err(error)
                if matches!(
                    error.kind,
                    KernelErrorKind::Busy | KernelErrorKind::AlreadyExists
                ) =>
            {
                Ok(())
            }
            Err(source) => Err(NfacctError::Refused { name, source }),
        }
    }

    /// Succeeds if a counter of this name exists or could be created.
    pub fn is_available(&mut self, name: &'static str) -> Result<(), NfacctError> {
        match self.socket.get(request(NFNL_MSG_ACCT_GET, 0, name)?)? {
            Ok(_) => Ok(()),
            Err(error) if error.kind == KernelErrorKind::NotFound => Ok(()),
            Err(source) => Err(NfacctError::Refused { name, source }),
        }
    }

    /// The packets that a counter has counted.
    pub fn packets(&mut self, name: &'static str) -> Result<u64, NfacctError> {
        let replies = self
            .socket
            .get(request(NFNL_MSG_ACCT_GET, 0, name)?)?
            .map_err(|source| NfacctError::Refused { name, source })?;
        Ok(replies.iter().find_map(packets).unwrap_or_default())
    }
}

fn request(kind: u16, flags: u16, name: &str) -> Result<Request, AttributeTooLong> {
    let mut payload = Writer::after(&HEADER);
    payload.string(NFACCT_NAME, name);
    Ok(Request {
        kind,
        flags,
        payload: payload.finish()?,
    })
}

fn packets(reply: &Reply) -> Option<u64> {
    NlasIterator::new(reply.payload.get(HEADER.len()..)?)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == NFACCT_PKTS)
        .and_then(|attribute| attribute.value().try_into().ok())
        .map(u64::from_be_bytes)
}

/// Decodes what the kernel may send, for `fuzz/`.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz(payload: &[u8]) {
    packets(&Reply {
        kind: NFNL_MSG_ACCT_NEW,
        payload: payload.to_vec(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_in_network_order() {
        let mut payload = Writer::after(&HEADER);
        payload.string(NFACCT_NAME, "some");
        payload.bytes(NFACCT_PKTS, &7_u64.to_be_bytes());
        let mut reply = Reply {
            kind: NFNL_MSG_ACCT_NEW,
            payload: payload.finish().unwrap(),
        };
        assert_eq!(packets(&reply), Some(7));
        reply.payload.truncate(HEADER.len() + 14);
        assert_eq!(packets(&reply), None);
        reply.payload.truncate(2);
        assert_eq!(packets(&reply), None);
    }
}
