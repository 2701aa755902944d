// SPDX-License-Identifier: Apache-2.0
//! IPVS mode with its fixed rules in nftables takes over from kube-proxy, which holds them in
//! iptables and ipsets, and goes from the one way to the other, under load.

use anyhow::{Result, ensure};

use crate::kernel::Kernel;
use crate::world::{Program, World};
use crate::{QEMU, Test};

pub(crate) const TESTS: &[Test] = &[(
    "a_takeover_to_nftables_rules_costs_no_connection",
    (QEMU, there_and_back),
)];

const NFTABLES: &str = "--ipvs-rules=nftables";
const IPTABLES: &str = "--ipvs-rules=iptables";

fn there_and_back(world: &mut World) -> Result<()> {
    let before = world.kernel();
    // What a first start makes.
    let mut fresh = Vec::new();
    for rules in [NFTABLES, IPTABLES] {
        let proxy = world.start_with(Program::Ours, "ipvs", rules)?;
        fresh.push(world.kernel());
        world.stop(proxy);
        world.clean_up()?;
        world.becomes(&before, "ours is gone")?;
    }
    let [with_nftables, with_iptables] = &fresh[..] else {
        unreachable!("two ways");
    };
    ensure!(
        !has(with_nftables, "KUBE") && has(with_iptables, "KUBE"),
        "only iptables holds chains and ipsets of kube-proxy's names: {with_nftables:#?}"
    );

    let proxy = world.start(Program::KubeProxy, "ipvs")?;
    let clients = world.clients()?;
    clients.go_on()?;
    world.stop(proxy);
    let proxy = world.start_with(Program::Ours, "ipvs", NFTABLES)?;
    clients.go_on()?;
    world.has_only_ours(with_nftables, "kube-proxy's chains and ipsets are gone")?;

    world.stop(proxy);
    let proxy = world.start_with(Program::Ours, "ipvs", IPTABLES)?;
    clients.go_on()?;
    world.has_only_ours(with_iptables, "the table is gone")?;
    world.stop(proxy);
    let proxy = world.start_with(Program::Ours, "ipvs", NFTABLES)?;
    clients.go_on()?;
    world.has_only_ours(with_nftables, "chains and ipsets are gone again")?;

    // As docs/ipvs-rules.md has it: kube-proxy does not know our table.
    world.stop(proxy);
    let proxy = world.start_with(Program::Ours, "ipvs", IPTABLES)?;
    clients.go_on()?;
    world.stop(proxy);
    let proxy = world.start(Program::KubeProxy, "ipvs")?;
    clients.go_on()?;
    world.are_flawless(clients, "from kube-proxy to nftables rules and back")?;
    world.stop(proxy);
    world.clean_up()?;
    world.becomes(&before, "all is as before the first start")
}

fn has(kernel: &Kernel, word: &str) -> bool {
    let sets = kernel.get("ipset save").into_iter().flatten();
    kernel
        .keys()
        .chain(sets)
        .any(|text| text.contains(word) && !text.contains("KUBE-FIREWALL"))
}
