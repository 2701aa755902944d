// SPDX-License-Identifier: Apache-2.0
//! IPVS mode over time: changes, restarts, endpoints that leave, schedulers, bad input. Each
//! scenario has a cluster of its own; after each step other programs must see what the manifests
//! want, and planning again must find nothing to do.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;

use kpr_testkit::cases::run::failed;
use kpr_testkit::manifests::{ManifestDirectory, Service};
use kpr_testkit::namespace::Namespace;
use kpr_testkit::oracle;
use kpr_testkit::proxy::{self, Invocation, Printed, Proxy};
use kpr_testkit::topology::{Family, Host, Topology};
use kpr_testkit::traffic::Servers;
use kpr_testkit::wait;

mod affinity;
mod audit;
mod bad_input;
mod clients;
mod connection_sync;
mod drain;
mod forwarding;
mod limits;
pub(super) mod missing;
mod native;
mod neighbours;
pub(super) mod nftables;
mod one_packet;
mod ownership;
mod restart;
mod rules;
mod schedulers;
mod seen;
mod sets;
mod settings;
mod slow_start;
mod state;
mod sysctls;
mod tunnels;
mod zones;

/// Scenarios with rules in nftables, where the kernel can hold them.
pub(super) fn trials_in_nftables(binary: &'static Path) -> Vec<Trial> {
    let scenario = |name: &str, run: fn(&Path) -> Result<()>| {
        Trial::test(format!("nftables::{name}"), move || {
            run(binary).map_err(failed)
        })
    };
    vec![
        // First: whatever uses a module keeps it.
        scenario(
            "auto_takes_it_without_xt_set",
            nftables::auto_takes_it_without_xt_set,
        ),
        scenario("starts_no_program", nftables::starts_no_program),
        scenario("there_and_back", nftables::there_and_back),
        scenario(
            "what_others_change_comes_back",
            nftables::what_others_change_comes_back,
        ),
        scenario("cleanup_leaves_nothing", nftables::cleanup_leaves_nothing),
        scenario("native_rules", native::beside_ours),
        scenario("native_rules_of_a_reload", native::reloaded),
        scenario("marks_of_others", neighbours::marks_in_nftables),
        scenario("health_checks", neighbours::health_checks_in_nftables),
    ]
}

/// All scenarios as tests.
pub(super) fn trials(binary: &'static Path) -> Vec<Trial> {
    let scenario = |name: &str, run: fn(&Path) -> Result<()>| {
        Trial::test(format!("ipvs::{name}"), move || run(binary).map_err(failed))
    };
    vec![
        scenario("state::follows_every_change", state::follows_every_change),
        scenario("restart::keeps_connections", restart::keeps_connections),
        scenario("restart::catches_up", restart::catches_up),
        scenario("drain::lets_connections_end", drain::lets_connections_end),
        scenario(
            "drain::udp_stays_while_it_serves",
            drain::udp_stays_while_it_serves,
        ),
        scenario(
            "schedulers::show_what_defines_them",
            schedulers::show_what_defines_them,
        ),
        scenario("settings::change_live", settings::change_live),
        scenario("settings::netmask", settings::netmask),
        scenario("settings::drain_limit", settings::drain_limit),
        scenario(
            "slow_start::gives_a_new_endpoint_its_share_in_time",
            slow_start::gives_a_new_endpoint_its_share_in_time,
        ),
        scenario(
            "zones::near_endpoints_get_more",
            zones::near_endpoints_get_more,
        ),
        scenario(
            "connection_sync::connections_move_with_their_address",
            connection_sync::connections_move_with_their_address,
        ),
        scenario(
            "connection_sync::daemons_follow_the_flag",
            connection_sync::daemons_follow_the_flag,
        ),
        scenario(
            "connection_sync::daemons_follow_their_interface",
            connection_sync::daemons_follow_their_interface,
        ),
        scenario(
            "one_packet::spreads_the_datagrams_of_a_client",
            one_packet::spreads_the_datagrams_of_a_client,
        ),
        scenario(
            "one_packet::is_no_use_with_masquerading",
            one_packet::is_no_use_with_masquerading,
        ),
        scenario("sysctls::follow_the_flags", sysctls::follow_the_flags),
        scenario("rules::come_back", rules::come_back),
        scenario(
            "audit::puts_real_servers_right",
            audit::puts_real_servers_right,
        ),
        scenario("audit::reads_little", audit::reads_little),
        scenario("ownership::others_survive", ownership::others_survive),
        scenario(
            "ownership::addresses_of_others",
            ownership::addresses_of_others,
        ),
        scenario(
            "ownership::node_ports_of_any_range",
            ownership::node_ports_of_any_range,
        ),
        scenario("sets::outgrow_their_size", sets::outgrow_their_size),
        scenario("affinity::follows_endpoints", affinity::follows_endpoints),
        scenario(
            "forwarding::replies_go_straight",
            forwarding::replies_go_straight,
        ),
        scenario(
            "limits::refuse_under_every_scheduler",
            limits::refuse_under_every_scheduler,
        ),
        scenario("limits::end_and_come_back", limits::end_and_come_back),
        scenario(
            "limits::let_clients_with_affinity_pass",
            limits::let_clients_with_affinity_pass,
        ),
        scenario(
            "tunnels::lead_nowhere_unasked",
            tunnels::lead_nowhere_unasked,
        ),
        scenario("neighbours::marks", neighbours::marks),
        scenario("neighbours::link_is_repaired", neighbours::link_is_repaired),
        scenario(
            "neighbours::refused_addresses",
            neighbours::refused_addresses,
        ),
        scenario("neighbours::no_ipv6", neighbours::no_ipv6),
        scenario("neighbours::published_ports", neighbours::published_ports),
        scenario("neighbours::health_checks", neighbours::health_checks),
        scenario("clients::with_a_node_port", clients::with_a_node_port),
        scenario("seen::connections", seen::connections),
        scenario("seen::counters", seen::counters),
        scenario("seen::draining", seen::draining),
        scenario("bad_input::is_skipped", bad_input::is_skipped),
        scenario("bad_input::scheduler", bad_input::scheduler),
        scenario("bad_input::capability", bad_input::capability),
    ]
}

/// A cluster, and how the proxy is started in it.
struct Lab {
    topology: Topology,
    servers: Servers,
    manifests: ManifestDirectory,
    invocation: Invocation,
}

impl Lab {
    fn new(binary: &Path, services: &[Service], flags: &[&str]) -> Result<Self> {
        let topology = Topology::new().context("cannot lay out the cluster")?;
        let servers = Servers::new(&topology)?;
        let manifests = ManifestDirectory::new(services)?;
        Ok(Self {
            invocation: Invocation::new(binary, &manifests, "ipvs")
                .in_cluster()
                .with(flags),
            topology,
            servers,
            manifests,
        })
    }

    fn node(&self) -> &Namespace {
        self.topology.host(Host::Node)
    }

    fn start(&self) -> Result<Proxy> {
        Proxy::start(self.node(), &self.invocation)
    }

    fn plan(&self) -> Result<Printed> {
        proxy::plan(self.node(), &self.invocation)
    }

    /// The plan is empty, says so by its exit code, and prints nothing else.
    fn nothing_to_do(&self) -> Result<()> {
        let planned = self.plan()?;
        ensure!(
            planned.code == Some(0) && steps(&planned).is_empty(),
            "wanted an empty plan, got exit code {:?} and\n{}{}",
            planned.code,
            planned.text,
            planned.errors
        );
        Ok(())
    }

    /// The plan becomes empty.
    fn nothing_to_do_soon(&self) -> Result<()> {
        wait::until("there is nothing left to do", || self.nothing_to_do())
    }

    /// Waits until the kernel holds exactly what these Services want, as other programs see it.
    fn settles_at(&self, services: &[Service], scheduler: &str) -> Result<()> {
        let wanted = oracle::wanted_virtual_servers(services, scheduler, &oracle::node_addresses());
        wait::until("ipvsadm shows what is wanted", || {
            let found = oracle::virtual_servers(self.node())?;
            let differences = oracle::differences(&wanted, &found);
            ensure!(differences.is_empty(), "{}", differences.join("\n"));
            Ok(())
        })?;
        let wanted = oracle::wanted_addresses(services);
        wait::until("kube-ipvs0 has the wanted addresses", || {
            let found = oracle::bound_addresses(self.node())?;
            ensure!(found == wanted, "wanted {wanted:?}, found {found:?}");
            Ok(())
        })?;
        let wanted = oracle::wanted_sets(services);
        wait::until("the sets have the wanted members", || {
            let found = oracle::sets(self.node())?;
            for (name, wanted) in &wanted {
                let found = found
                    .get(name)
                    .with_context(|| format!("there is no set {name}"))?;
                ensure!(
                    found == wanted,
                    "{name}: wanted {wanted:?}, found {found:?}"
                );
            }
            Ok(())
        })?;
        self.has_its_rules()?;
        // Steps that none of these show may come last.
        self.nothing_to_do_soon()
    }

    /// The jumps from the built-in chains are there, and the chains they lead to.
    fn has_its_rules(&self) -> Result<()> {
        const JUMPS: [(&str, &str, &str); 9] = [
            ("nat", "OUTPUT", "KUBE-SERVICES"),
            ("nat", "PREROUTING", "KUBE-SERVICES"),
            ("nat", "POSTROUTING", "KUBE-POSTROUTING"),
            ("filter", "FORWARD", "KUBE-FORWARD"),
            ("filter", "INPUT", "KUBE-NODE-PORT"),
            ("filter", "INPUT", "KUBE-PROXY-FIREWALL"),
            ("filter", "FORWARD", "KUBE-PROXY-FIREWALL"),
            ("filter", "INPUT", "KUBE-IPVS-FILTER"),
            ("filter", "OUTPUT", "KUBE-IPVS-OUT-FILTER"),
        ];
        for family in Family::ALL {
            let rules = oracle::rules(self.node(), family)?;
            for (table, chain, target) in JUMPS {
                let in_table = rules
                    .iter()
                    .skip_while(|line| **line != format!("*{table}"))
                    .take_while(|line| *line != "COMMIT");
                let jumps: Vec<_> = in_table
                    .filter(|line| {
                        line.starts_with(&format!("-A {chain} "))
                            && line.ends_with(&format!("-j {target}"))
                    })
                    .collect();
                ensure!(
                    jumps.len() == 1,
                    "{family} {table} {chain}: wanted one jump to {target}, found {jumps:?}"
                );
            }
        }
        Ok(())
    }

    /// Nothing of the proxy is in the kernel.
    fn is_untouched(&self) -> Result<()> {
        let found = oracle::virtual_servers(self.node())?;
        ensure!(found.is_empty(), "there are virtual servers: {found:?}");
        let sets = oracle::sets(self.node())?;
        ensure!(sets.is_empty(), "there are sets: {sets:?}");
        if oracle::bound_addresses(self.node()).is_ok() {
            bail!("there is kube-ipvs0");
        }
        for family in Family::ALL {
            let rules = oracle::rules(self.node(), family)?;
            ensure!(
                !rules.iter().any(|rule| rule.contains("KUBE-")),
                "there are rules:\n{}",
                rules.join("\n")
            );
        }
        Ok(())
    }
}

/// The lines of a plan that are steps.
fn steps(planned: &Printed) -> Vec<&str> {
    const VERBS: [&str; 7] = ["set", "create", "add", "delete", "swap", "destroy", "edit"];
    planned
        .text
        .lines()
        .map(str::trim_start)
        .filter(|line| {
            VERBS
                .iter()
                .any(|verb| line.starts_with(&format!("{verb} ")))
        })
        .collect()
}
