// SPDX-License-Identifier: Apache-2.0
//! From one proxy to the other under load: no connection fails, none breaks, nothing is left over.

use anyhow::Result;

use crate::world::{Program, World};
use crate::{Test, UML};

pub(crate) const TESTS: &[Test] = &[(
    "a_takeover_costs_no_connection_whatever_the_modes",
    (UML, there_and_back),
)];

fn there_and_back(world: &mut World) -> Result<()> {
    let before = world.kernel();
    // What a first start of ours makes.
    let mut fresh = Vec::new();
    for mode in ["iptables", "ipvs"] {
        let proxy = world.start(Program::Ours, mode)?;
        fresh.push(world.kernel());
        world.stop(proxy);
        world.clean_up()?;
        world.becomes(&before, "ours is gone")?;
    }
    let [fresh_iptables, fresh_ipvs] = &fresh[..] else {
        unreachable!("two modes");
    };

    // The same mode, there and back.
    let proxy = world.start(Program::KubeProxy, "ipvs")?;
    let clients = world.clients()?;
    clients.go_on()?;
    world.stop(proxy);
    let proxy = world.start(Program::Ours, "ipvs")?;
    clients.go_on()?;
    world.has_only_ours(
        fresh_ipvs,
        "only ours is there after kube-proxy in ipvs mode",
    )?;
    world.stop(proxy);
    let proxy = world.start(Program::KubeProxy, "ipvs")?;
    clients.go_on()?;
    world.are_flawless(clients, "ipvs mode, there and back")?;

    // Another mode.
    let clients = world.clients()?;
    clients.go_on()?;
    world.stop(proxy);
    let proxy = world.start(Program::Ours, "iptables")?;
    clients.go_on()?;
    world.are_flawless(clients, "kube-proxy in ipvs mode, ours in iptables mode")?;
    world.has_only_ours(
        fresh_iptables,
        "only ours is there after kube-proxy in ipvs mode",
    )?;

    // Back, and the other way round.
    let clients = world.clients()?;
    clients.go_on()?;
    world.stop(proxy);
    let proxy = world.start(Program::KubeProxy, "iptables")?;
    clients.go_on()?;
    world.stop(proxy);
    let proxy = world.start(Program::Ours, "ipvs")?;
    clients.go_on()?;
    world.has_only_ours(
        fresh_ipvs,
        "only ours is there after kube-proxy in iptables mode",
    )?;
    world.stop(proxy);
    let proxy = world.start(Program::KubeProxy, "ipvs")?;
    clients.go_on()?;
    world.are_flawless(
        clients,
        "ours in iptables mode, kube-proxy in it, ours in ipvs mode, kube-proxy in it",
    )?;
    world.stop(proxy);
    world.clean_up()?;
    world.becomes(&before, "all is as before the first start")
}
