// SPDX-License-Identifier: Apache-2.0
//! A Service without endpoints refuses connections, also where another program accepts what pods
//! send before our rules see it.

use std::path::Path;

use anyhow::{Result, ensure};

use super::Lab;
use crate::cases::{At, Dataplane};
use crate::manifests::Service;
use crate::topology::{Family, Host};
use crate::traffic::{Outcome, Patience, Protocol, ask};
use crate::wait;

/// As the CNI plugin `firewall` v1.10.0 (`CNI-FORWARD`) and kube-router v2.11.1 do it: a chain that
/// accepts what pods send, first in `FORWARD`.
pub(super) fn come_first(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let service = Service::new("empty", 1, &[])
        .protocols(&[Protocol::Tcp])
        .exposed();
    let lab = Lab::new(binary, dataplane, std::slice::from_ref(&service), &[])?;
    for family in Family::ALL {
        let pod = Host::Shell.address(family);
        lab.iptables(family, "-N CNI-FORWARD")?;
        lab.iptables(family, &format!("-A CNI-FORWARD -s {pod} -j ACCEPT"))?;
        // Twice: the other program may put it back.
        for _ in 0..2 {
            lab.iptables(family, "-I FORWARD 1 -j CNI-FORWARD")?;
            for at in [At::ClusterIp, At::ExternalIp, At::Vip] {
                let to = at.address(&service, family, 80);
                wait::until("the Service refuses", || {
                    let from = lab.host(Host::Shell);
                    let outcome = ask(from, None, to, Protocol::Tcp, Patience::Short)?;
                    ensure!(
                        outcome == Outcome::Refused,
                        "{to}: {outcome}\n{}",
                        lab.proxy.log()
                    );
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}
