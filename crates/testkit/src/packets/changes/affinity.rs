// SPDX-License-Identifier: Apache-2.0
//! A client is remembered for as long as the Service says.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use super::{Lab, answered, at};
use crate::cases::{At, Dataplane};
use crate::manifests::Service;
use crate::topology::{Family, Host};
use crate::traffic::{Connection, Patience, Protocol};
use crate::wait;

fn sticky(name: &str, n: u8, seconds: u32) -> Service {
    Service::new(name, n, &[Host::Web1, Host::Web3])
        .exposed()
        .with("sessionAffinity", json!("ClientIP"))
        .with(
            "sessionAffinityConfig",
            json!({ "clientIP": { "timeoutSeconds": seconds } }),
        )
}

pub(super) fn expires(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let (short, long) = (sticky("short", 1, 1), sticky("long", 2, 600));
    let lab = Lab::new(binary, dataplane, &[short.clone(), long.clone()], &[])?;
    for family in Family::ALL {
        let by = |service: &Service, place| {
            let outcome = lab.ask(Host::Client, at(place, service, family), Protocol::Tcp)?;
            Ok::<_, anyhow::Error>(answered(outcome)?.by)
        };
        // One memory for all addresses of a Service.
        let first = by(&long, At::NodePort)?;
        for place in At::EXTERNAL.into_iter().cycle().take(12) {
            let now = by(&long, place)?;
            ensure!(now == first, "{family} {place:?}: {now} after {first}");
        }
        // Each new connection counts the time anew, so that it has to pass between two of them.
        let first = by(&short, At::Vip)?;
        wait::until("the client is forgotten", || {
            wait::let_pass(Duration::from_millis(1_100));
            let now = by(&short, At::Vip)?;
            ensure!(now != first, "it was {now} again");
            Ok(())
        })
        .with_context(|| family.to_string())?;
    }
    Ok(())
}

/// IPVS remembers a client for as long as the Service says if its connections are gone by then, as
/// they are 10 s after a reset. Else it is put off by a minute, for which this does not wait.
pub(super) fn expires_after_connections(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let service = sticky("short", 1, 15);
    let lab = Lab::new(binary, dataplane, std::slice::from_ref(&service), &[])?;
    let by = |family| -> Result<String> {
        let (client, to) = (lab.host(Host::Client), at(At::Vip, &service, family));
        let connection = Connection::open(client, to, Protocol::Tcp, Patience::Long)?;
        let connection = connection.map_err(|outcome| anyhow!("{to}: {outcome}"))?;
        let by = connection.answer.by.clone();
        connection.abort()?;
        Ok(by)
    };
    let mut first = Vec::new();
    for family in Family::ALL {
        let now = by(family)?;
        for _ in 0..4 {
            let again = by(family)?;
            ensure!(now == again, "{family}: {again} after {now}");
        }
        first.push((family, now));
    }
    // Looking must not be a connection, which would count the time anew.
    wait::until("the clients are forgotten", || {
        let entries = lab.host(Host::Node).run("cat", &["/proc/net/ip_vs_conn"])?;
        let mut ports = entries.lines().map(|line| line.split_whitespace().nth(2));
        ensure!(!ports.any(|port| port == Some("0000")), "{entries}");
        Ok(())
    })?;
    for (family, first) in first {
        let now = by(family)?;
        ensure!(now != first, "{family}: {now} again");
    }
    Ok(())
}
