// SPDX-License-Identifier: Apache-2.0
//! Latency of one endpoint change in IPVS mode, from the write to the API server to the kernel.
//!
//! One thread writes and polls, so that both times are of the same clock. It sleeps between two
//! polls: the guest has a single processor, and the proxy needs it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context as _;
use ipvs_netlink::{Client as Ipvs, Protocol, ServiceKey};
use kpr_tools::pause;
use kube_proxy_rs::clock::Clock;
use serde_json::{Value, json};

use crate::api::Writer;
use crate::probe::TooLate;
use crate::{cluster, rounded};

/// Between two reads of the kernel's real servers.
const LOOK: Duration = Duration::from_micros(500);

/// A Service whose last endpoint is removed and added back.
pub(super) struct Target {
    pub(super) service: u16,
    pub(super) address: IpAddr,
}

/// Removes an endpoint and adds it back, one change at a time, of each target in turn.
pub(super) fn measure(
    clock: &Clock,
    writer: &Writer,
    targets: &[Target],
    changes: u16,
    deadline: Duration,
    results: &mut Vec<Value>,
) -> anyhow::Result<()> {
    // The kernel of the calling thread's namespace.
    let mut ipvs = Ipvs::open()?;
    for (index, target) in (0..changes.div_ceil(2)).zip(targets.iter().cycle()) {
        let [with, without] = &writer.without(target.service, 1)?[..] else {
            anyhow::bail!("expected two requests");
        };
        for (request, before, is_there) in [(without, 0, false), (with, 1, true)] {
            let write = || writer.send(request, before);
            results.push(one(clock, &mut ipvs, target, is_there, deadline, write)?);
            // Varies, so as not to be in step with anything periodic.
            pause(Duration::from_millis(60 + u64::from(index * 37 % 101)));
        }
    }
    Ok(())
}

fn one(
    clock: &Clock,
    ipvs: &mut Ipvs,
    target: &Target,
    is_there: bool,
    deadline: Duration,
    write: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Value> {
    let key = ServiceKey::new(Protocol::Tcp, target.address, cluster::PORT);
    let server = IpAddr::V4(cluster::endpoint(
        target.service,
        cluster::NEW_ENDPOINTS - 1,
    ));
    let begin = clock.monotonic();
    write()?;
    let answered = clock.monotonic();
    let mut last_look = answered;
    loop {
        // A server of weight 0 gets no new connections; it is removed once it has drained.
        let is_it = ipvs.destinations(&key)?.iter().any(|status| {
            status.destination.key.address == server && status.destination.weight > 0
        });
        let now = clock.monotonic();
        let since = |at: Duration| rounded(now.saturating_sub(at).as_secs_f64());
        if is_it == is_there {
            return Ok(json!({
                "added": is_there,
                "seconds": since(begin),
                // The kernel may have a change before its writer has the answer.
                "afterAnswerSeconds": since(answered),
                "blurSeconds": since(last_look),
            }));
        }
        if now > deadline {
            return Err(TooLate(format!("{server} did not change")).into());
        }
        last_look = now;
        pause(LOOK);
    }
}

/// New Services with ten endpoints each, so that a read costs the same in every cluster.
pub(super) fn targets(writer: &Writer, count: u16) -> anyhow::Result<Vec<Target>> {
    (cluster::NEW + 2_000..)
        .take(count.into())
        .map(|service| {
            writer.prepare_service(service)?;
            let address = writer.create_service(service)?;
            writer.create_endpoints(service)?;
            Ok(Target { service, address })
        })
        .collect::<anyhow::Result<Vec<_>>>()
        .context("cannot create the Services to change")
}
