// SPDX-License-Identifier: Apache-2.0
//! File descriptors. The limit is raised as far as it goes, and what peers and Services make the
//! proxy open never takes the last ones: netlink sockets, programs, files and the API server need
//! some.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{debug, warn};

/// Kept for the proxy's own work.
const OWN: u64 = 64;

/// Kept for the connections of HTTP clients, which more listening sockets must not keep out.
const CLIENTS: u64 = 192;

/// Who made the proxy open a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A client of an HTTP server connected.
    Client,
    /// A Service wants a listening socket, or a client of its node port a connection.
    Service,
}

impl Cause {
    /// The descriptors that it leaves free; of a low limit at most a quarter for each purpose.
    fn leaves(self, limit: u64) -> u64 {
        let (own, clients) = (OWN.min(limit / 4), CLIENTS.min(limit / 4));
        match self {
            Self::Client => own,
            Self::Service => own + clients,
        }
    }
}

/// Raises the limit of this process to what it may have, as Go's runtime does. Container runtimes
/// hand out a soft limit of 1,024.
pub fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        debug!(soft, hard, "limit of file descriptors raised");
        Ok(())
    });
    if let Err(error) = raised {
        warn!(%error, "failed to raise the limit of file descriptors");
    }
}

/// Fails with `EMFILE` if a descriptor that was just opened is one of those that are kept for
/// others; the caller closes it.
pub fn spare(descriptor: &impl AsFd, cause: Cause) -> io::Result<()> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let number = u64::try_from(descriptor.as_fd().as_raw_fd()).unwrap_or_default();
    if is_spare(number, limit, cause) {
        Ok(())
    } else {
        Err(Errno::EMFILE.into())
    }
}

/// The kernel gives out the lowest free number: all below this one are in use.
fn is_spare(number: u64, limit: u64, cause: Cause) -> bool {
    number < limit - cause.leaves(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept() {
        for (limit, clients, services) in [
            (1_024, 960, 768),
            (256, 192, 128),
            (100, 75, 50),
            (u64::MAX, u64::MAX - OWN, u64::MAX - OWN - CLIENTS),
        ] {
            for (cause, end) in [(Cause::Client, clients), (Cause::Service, services)] {
                assert!(is_spare(end - 1, limit, cause), "{limit} {cause:?}");
                assert!(!is_spare(end, limit, cause), "{limit} {cause:?}");
            }
        }
    }

    #[test]
    fn the_limit_is_the_highest_and_a_low_number_is_spare() {
        raise_limit();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
        let file = std::fs::File::open("/proc/self/limits").unwrap();
        spare(&file, Cause::Service).unwrap();
    }
}
