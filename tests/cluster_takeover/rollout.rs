// SPDX-License-Identifier: Apache-2.0
//! A rolling update with ours in IPVS mode at the full rate: the guest has nothing to do but to
//! carry packets.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};

use crate::world::{Program, World};
use crate::{Test, UML};
use kpr_testkit::namespace::Namespace;
use kpr_testkit::rollout::{Client, Ground, Place, Rollout, service};
use kpr_testkit::testbed::Testbed;
use kpr_testkit::topology::{Family, cluster_ip, node_port};

pub(crate) const TESTS: &[Test] = &[(
    "a_rolling_update_loses_nothing_in_ipvs_mode",
    (UML, loses_nothing),
)];

/// New connections per second that are begun: more than 200 are made then, if the machine does
/// nothing else.
const BEGUN: u32 = 220;

/// With fewer the test would say little; a machine that other tests share makes more than these.
const ENOUGH: f64 = 60.0;

/// All pods are in one namespace.
struct Cluster {
    testbed: Testbed,
    pods: Namespace,
}

impl Ground for Cluster {
    fn make_room(&self, _: Place) -> Result<&Namespace> {
        Ok(&self.pods)
    }

    fn publish(&self, manifest: &str) -> Result<()> {
        self.testbed.apply(manifest);
        Ok(())
    }
}

fn loses_nothing(world: &mut World) -> Result<()> {
    let both = |place: Place| Family::ALL.map(|family| place.address(family));
    let addresses: Vec<IpAddr> = Place::all().flat_map(both).collect();
    let (pods, _uplink) = world.pods(&addresses)?;
    let service = service("rollout", 123);
    world.takes_away(&service.manifest());
    let cluster = Cluster {
        testbed: world.testbed.clone(),
        pods,
    };
    let node_ports = world.guest.addresses.iter();
    let node_ports = node_ports.map(|address| SocketAddr::new(*address, node_port(service.n)));
    let node_ports: Vec<SocketAddr> = node_ports.collect();
    let cluster_ips = Family::ALL.map(|family| SocketAddr::new(cluster_ip(family, service.n), 80));
    let mut rollout = Rollout::new(cluster, service)?;
    let proxy = world.start(Program::Ours, "ipvs")?;
    let clients = [
        Client {
            from: &world.neighbours.shell,
            targets: cluster_ips.to_vec(),
        },
        Client {
            from: &world.neighbours.client,
            targets: node_ports,
        },
    ];
    let report = rollout.replace_all(&clients, BEGUN)?;
    eprintln!("{:.0} per second, {report:?}", report.per_second());
    ensure!(
        report.per_second() >= ENOUGH,
        "{:.0} connections per second: {report:?}",
        report.per_second()
    );
    world.stop(proxy);
    Ok(())
}
