// SPDX-License-Identifier: Apache-2.0
//! The addresses behind the API server's name. The node needs them, whatever a Service claims.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::super::{Closed, Update, send};

/// How often the name is looked up again.
const PERIOD: Duration = Duration::from_mins(1);
/// How long to wait for an answer. DNS may well be served by what this proxy is about to program.
const PATIENCE: Duration = Duration::from_secs(2);
/// A name may have another address each time. What it once had is kept, up to this many.
const MOST: usize = 64;

/// The addresses of a host, none if they are not known soon.
pub(super) async fn resolve(host: &str) -> BTreeSet<IpAddr> {
    if let Ok(address) = host.parse() {
        return [address].into();
    }
    // The port does not matter.
    match timeout(PATIENCE, tokio::net::lookup_host((host, 0))).await {
        Ok(Ok(found)) => found.map(|address| address.ip().to_canonical()).collect(),
        Ok(Err(_)) | Err(_) => BTreeSet::new(),
    }
}

/// Sends the addresses that a name has and had, as they become known.
pub(super) async fn follow<U: From<Update>>(host: String, updates: &mpsc::Sender<U>) {
    if host.parse::<IpAddr>().is_ok() {
        return;
    }
    tokio::select! {
        _closed = look_up_again(&host, updates) => {}
        () = updates.closed() => {}
    }
}

async fn look_up_again<U: From<Update>>(
    host: &str,
    updates: &mpsc::Sender<U>,
) -> Result<(), Closed> {
    let mut known = BTreeSet::new();
    loop {
        let found = resolve(host).await;
        if !found.is_subset(&known) {
            if known.len() + found.len() > MOST {
                known.clear();
            }
            known.extend(found);
            send(updates, Update::ApiServers(known.clone())).await?;
        }
        sleep(PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpr_core::model::testing::ip;

    #[tokio::test]
    async fn an_address_is_its_own_and_a_name_is_looked_up() {
        assert_eq!(resolve("192.0.2.1").await, [ip("192.0.2.1")].into());
        assert_eq!(resolve("2001:db8::1").await, [ip("2001:db8::1")].into());
        assert!(resolve("localhost").await.contains(&ip("127.0.0.1")));
        assert_eq!(resolve("no-such-name.invalid").await, BTreeSet::new());
    }
}
