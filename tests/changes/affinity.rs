// SPDX-License-Identifier: Apache-2.0
//! A client is remembered for as long as the Service says.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Lab, answered, at};
use crate::cases::{At, Dataplane};
use crate::common::manifests::Service;
use crate::common::topology::{Family, Host};
use crate::common::traffic::Protocol;
use crate::common::wait;

pub(super) fn expires(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let sticky = |name: &str, n, seconds: u32| {
        Service::new(name, n, &[Host::Web1, Host::Web3])
            .exposed()
            .with("sessionAffinity", json!("ClientIP"))
            .with(
                "sessionAffinityConfig",
                json!({ "clientIP": { "timeoutSeconds": seconds } }),
            )
    };
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
