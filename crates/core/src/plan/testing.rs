// SPDX-License-Identifier: Apache-2.0
//! A node and a planner with a fake kernel, for tests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::return_self_not_must_use,
    clippy::disallowed_methods,
    reason = "for tests, which may fail loudly"
)]

pub mod check;
pub mod fake;
pub mod tracer;
pub mod two_worlds;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::node::LocalDetector;
use crate::model::testing::ip;
use crate::model::{Budget, Event, Holders, IpFamily, Protocol, ServiceName, ServiceView, Tracker};
use crate::plan::context::{Context, Hairpin, IptablesContext, IpvsRules, KernelVersion};
use crate::plan::iptables::affinity::ClientMemory;
use crate::plan::ipvs::object::{RealServerKey, Timeouts, VirtualServerKey};
use crate::plan::ipvs::planner::RealServerOf;
use crate::plan::ipvs::step::Step;
use crate::plan::ipvs::{Plan, Planner, State};
use crate::plan::mode::{Drains as _, Planner as _, SlicedAudit as _};
use crate::plan::testing::check::check;
use crate::plan::testing::fake::{FakeKernel, Fault};

/// A node at `192.168.0.10` and `fd00:192::10` in zone `here`, with one more address.
pub fn context(family: IpFamily) -> Context {
    let (node, other, services, everywhere) = match family {
        IpFamily::V4 => ("192.168.0.10", "172.16.0.10", "10.96.0.0/12", "0.0.0.0/0"),
        IpFamily::V6 => ("fd00:192::10", "fd00:172::10", "fd00:96::/64", "::/0"),
    };
    let addresses = BTreeSet::from([ip(node), ip(other)]);
    Context {
        family,
        budget: Budget::default(),
        owns_node: family == IpFamily::V4,
        zone: Some("here".into()),
        node_ip: Some(ip(node)),
        node_addresses: addresses.clone(),
        node_port_addresses: addresses,
        scheduler: "rr".into(),
        missing_schedulers: BTreeSet::new(),
        refused_schedulers: BTreeSet::new(),
        tunnel_ranges: vec![everywhere.parse().unwrap()],
        drain_limit: Duration::from_hours(1),
        exclude_cidrs: Vec::new(),
        node_port_range: None,
        service_cidrs: vec![services.parse().unwrap()],
        masquerade_all: false,
        masquerade_mark: 0x4000,
        ipvs_rules: IpvsRules::Iptables,
        has_security_table: true,
        local_detector: LocalDetector::None,
        strict_arp: false,
        sysctls: BTreeMap::new(),
        timeouts: Timeouts::default(),
        sync: None,
        kernel: KernelVersion { major: 6, minor: 1 },
        iptables: IptablesContext {
            node_ports_everywhere: true,
            localhost_node_ports: family == IpFamily::V4,
            counts_packets: false,
            leaves_ipvs: false,
            batch_limit: None,
            memory: ClientMemory::default(),
            drop_invalid: true,
            hairpin: Hairpin::PerEndpoint,
        },
    }
}

/// `tcp("10.96.0.1:80")`.
pub fn tcp(at: &str) -> VirtualServerKey {
    vs(Protocol::Tcp, at)
}

pub fn udp(at: &str) -> VirtualServerKey {
    vs(Protocol::Udp, at)
}

pub fn vs(protocol: Protocol, at: &str) -> VirtualServerKey {
    let at: std::net::SocketAddr = at.parse().unwrap();
    VirtualServerKey::Address {
        address: at.ip(),
        port: at.port(),
        protocol,
    }
}

pub fn rs(at: &str) -> RealServerKey {
    let at: std::net::SocketAddr = at.parse().unwrap();
    RealServerKey {
        address: at.ip(),
        port: at.port(),
    }
}

/// The lines of a plan, without the static rules.
pub fn lines(plan: &Plan) -> Vec<String> {
    plan.steps()
        .filter(|step| !matches!(step, Step::EditRules(_)))
        .map(ToString::to_string)
        .collect()
}

/// A tracker, a planner and a kernel: a proxy without its loop.
#[derive(Clone, Debug)]
pub struct Proxy {
    pub tracker: Tracker,
    pub planner: Planner,
    pub kernel: FakeKernel<State>,
    /// Since the start.
    pub now: Duration,
}

impl Proxy {
    /// Starts with the objects of a tracker and a kernel with `state`; programs nothing.
    pub fn start(context: Context, tracker: Tracker, state: State) -> Self {
        let mut proxy = Self {
            tracker,
            planner: Planner::new(context).unwrap(),
            kernel: FakeKernel::new(state),
            now: Duration::ZERO,
        };
        proxy.planner.update_all(&proxy.tracker);
        proxy.observe();
        proxy.tracker.take();
        proxy
    }

    fn update(&mut self, name: &ServiceName) {
        let Context { family, budget, .. } = *self.planner.context();
        let changed = ServiceView::within(&self.tracker, name, family, &budget);
        self.planner.update(&changed, &self.tracker);
    }

    pub fn observe(&mut self) {
        self.planner.observed(self.kernel.state.clone());
    }

    /// Time passes; programs nothing.
    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        self.planner.set_time(self.now);
    }

    /// Learns who has addresses; programs nothing.
    pub fn set_holders(&mut self, holders: Holders) {
        self.tracker.set_holders(holders);
        self.take_in([]);
    }

    /// Takes in events; programs nothing.
    pub fn take_in(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.tracker.apply(event);
        }
        for name in self.tracker.take().services {
            self.update(&name);
        }
    }

    /// One round in which all steps succeed and the kernel ends up as believed.
    pub fn sync(&mut self) -> Plan {
        let plan = self.planner.plan();
        assert_eq!(check(&plan, self.planner.believed()), Ok(()), "{plan}");
        self.finish(&plan);
        assert!(!self.planner.is_pending(), "pending after\n{plan}");
        plan
    }

    pub fn finish(&mut self, plan: &Plan) {
        let report = self.kernel.apply(plan);
        assert!(report.is_success(), "{report:?}");
        self.planner.report(plan, &report);
        assert_eq!(self.planner.take_doubtful(), BTreeSet::new());
        assert_eq!(*self.planner.believed(), self.kernel.state);
        assert!(!self.planner.needs_observation());
    }

    /// One round in which steps fail; afterwards everything in doubt is observed.
    pub fn try_sync(&mut self, fault: impl FnMut(&Step) -> Option<Fault>) -> Plan {
        let plan = self.planner.plan();
        assert_eq!(check(&plan, self.planner.believed()), Ok(()), "{plan}");
        let report = self.kernel.apply_with(&plan, fault);
        self.planner.report(&plan, &report);
        let doubtful = self.planner.take_doubtful();
        self.look_again(&doubtful);
        plan
    }

    /// Observes what is in doubt.
    pub fn look_again(&mut self, doubtful: &BTreeSet<VirtualServerKey>) {
        if self.planner.needs_observation() {
            self.observe();
        } else {
            let states = self.kernel.virtual_servers(doubtful);
            self.planner.observed_virtual_servers(states);
        }
    }

    /// Ends the connections of these draining servers.
    pub fn drain(&mut self, idle: &BTreeSet<RealServerOf>) -> Plan {
        let plan = self.planner.plan_drained(idle);
        assert_eq!(check(&plan, self.planner.believed()), Ok(()), "{plan}");
        let report = self.kernel.apply(&plan);
        assert!(report.is_success(), "{report:?}");
        self.planner.report_part(&plan, &report);
        assert_eq!(self.planner.take_doubtful(), BTreeSet::new());
        // A setting may have been written although the answer was lost. It is not observed but
        // written again.
        let mut believed = self.planner.believed().clone();
        believed.node = self.kernel.state.node.clone();
        assert_eq!(believed, self.kernel.state);
        plan
    }

    /// Ends the connections of all draining servers.
    pub fn drain_all(&mut self) -> Plan {
        self.drain(&self.planner.draining().clone())
    }

    /// A new process finds the present kernel and objects; programs nothing.
    pub fn restarted(&self) -> Self {
        let mut tracker = Tracker::default();
        tracker.apply(Event::ServicesReplaced(
            self.tracker.services().cloned().collect(),
        ));
        tracker.apply(Event::SlicesReplaced(
            self.tracker.slices().cloned().collect(),
        ));
        tracker.set_holders(self.tracker.holders().clone());
        Self::start(
            self.planner.context().clone(),
            tracker,
            self.kernel.state.clone(),
        )
    }
}

/// Compares a text with a file below `tests/golden`, or writes the file if `UPDATE_GOLDEN` is set
/// (`hack/update-golden.sh`).
pub fn golden(path: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == expected,
        "{} differs; run hack/update-golden.sh and look at the difference. It should be\n{text}",
        path.display()
    );
}
