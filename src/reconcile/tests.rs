// SPDX-License-Identifier: Apache-2.0

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::net::IpAddr;
use std::sync::Mutex;

use jiff::Timestamp;

use super::family::ObserveScope;
use super::runner::Pace;
use super::*;
use crate::clock::ManualClock;
use crate::config::{self, Command};
use crate::dataplane::kernel::{
    AuditDepth, Cost, Host, ListedServer, NodeSurroundings, ObserveError, ProcListing, RuleKernel,
    ServerKernel,
};
use crate::dataplane::surroundings::Listening;
use crate::health::ProxyHealth;
use kpr_core::model::ipvs_options::Scheduler;
use kpr_core::model::testing::{endpoint, ip, service, service_name, slice};
use kpr_core::model::{Event, NodeClaims, ProxyMode};
use kpr_core::plan::conntrack::flows::{Cleanup, Flow};
use kpr_core::plan::ipvs::State;
use kpr_core::plan::ipvs::object::{RealServers, VirtualServerKey};
use kpr_core::plan::ipvs::planner::RealServerOf;
use kpr_core::plan::ipvs::state::{LinkState, VirtualServerState};
use kpr_core::plan::ruleset::{Edit, Ruleset};
use kpr_core::plan::testing::fake::{FakeKernel, Fault, in_iptables_mode};
use kpr_core::plan::testing::{rs, tcp};
use kpr_core::plan::{Drift, Failure, FailureKind, Report, Step, iptables, ipvs};

mod audit;
mod drain;
mod failures;
mod flows;
mod holders;
mod kernel;
mod link;
mod node;
mod probes;
mod reports;
mod settings;
mod shown;
mod slow_start;
mod watch;
mod watcher;
mod work;

use audit::Shown;
use kernel::{Node, Shared};
use watch::Watched;
use watcher::Watcher;

struct Fixture<P: Planner = ipvs::Planner> {
    reconciler: Reconciler<P, Shared>,
    node: Shared,
    time: ManualClock,
    watcher: Arc<Watcher>,
}

impl Fixture {
    fn new() -> Self {
        let periods = ["--ipvs-sync-period=30s", "--ipvs-min-sync-period=0s"];
        Self::with(&[&["--proxy-mode=ipvs"], &periods[..]].concat())
    }

    fn with(flags: &[&str]) -> Self {
        Self::made(flags, ipvs::Planner::new, None)
    }

    /// A loop that has programmed `ns/web` with two endpoints.
    fn programmed() -> Self {
        let mut fixture = Self::new();
        fixture.known_node();
        fixture.model(Event::ServicesReplaced(vec![service("ns/web").port(80)]));
        let endpoints = vec![endpoint("10.1.0.5"), endpoint("10.1.0.6")];
        fixture.model(Event::SlicesReplaced(vec![
            slice("ns/web", "a", endpoints).port(8080),
        ]));
        fixture.work();
        assert_eq!(
            fixture.real_servers(),
            [("10.1.0.5:8080", 1), ("10.1.0.6:8080", 1)]
        );
        fixture.lock().applied.clear();
        fixture.lock().observations.clear();
        fixture
    }
}

impl Fixture<iptables::Planner> {
    /// In iptables mode, on a kernel with what IPVS mode left.
    fn after(previous: Option<Shared>) -> Self {
        let planner = |context| Ok(iptables::Planner::new(context));
        Self::made(&["--proxy-mode=iptables"], planner, previous)
    }

    fn in_iptables_mode(flags: &[&str]) -> Self {
        Self::made(flags, |context| Ok(iptables::Planner::new(context)), None)
    }
}

impl<P: Planner> Fixture<P>
where
    Shared: Kernel<P>,
{
    fn made(
        flags: &[&str],
        planner: fn(Context) -> Result<P, InvalidChainName>,
        previous: Option<Shared>,
    ) -> Self {
        let arguments = ["kube-proxy-rs"].iter().chain(flags);
        let Command::Run(settings) = config::parse(arguments.map(OsString::from)).unwrap() else {
            panic!("not a command to run")
        };
        let (clock, time) = Clock::manual(Timestamp::UNIX_EPOCH);
        let node = Shared::default();
        let watcher = Arc::new(Watcher::default());
        let health = ProxyHealth::new(clock.clone(), settings.sync.period);
        health.started(IpFamily::V4);
        watcher.health.set(health).unwrap();
        let reconciler = Reconciler::new(Parts {
            facts: NodeFacts {
                leaves_ipvs: previous.is_some(),
                nodes: Some(NodeClaims::default()),
                ..NodeFacts::default()
            },
            planner,
            pace: match settings.mode {
                ProxyMode::IPTABLES => Pace::GrowingCost,
                _ => Pace::Period,
            },
            previous: previous.map(|kernel| Box::new(kernel) as Box<dyn IpvsKernel>),
            settings: Arc::new(*settings),
            families: vec![IpFamily::V4],
            kernel: node.clone(),
            clock,
            observer: watcher.clone(),
        });
        Self {
            reconciler: reconciler.unwrap(),
            node,
            time,
            watcher,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Node> {
        self.node.lock().unwrap()
    }

    fn model(&mut self, event: Event) {
        self.reconciler.take_in(Input::Source(Update::Model(event)));
    }

    fn node(&mut self, info: Option<kpr_core::model::NodeInfo>) {
        self.reconciler.take_in(Input::Source(Update::Node(info)));
    }

    fn known_node(&mut self) {
        self.node(Some(here()));
    }

    fn scale(&mut self, addresses: &[&str]) {
        let endpoints = addresses.iter().map(|address| endpoint(address)).collect();
        self.model(Event::SliceApplied(
            slice("ns/web", "a", endpoints).port(8080),
        ));
    }

    fn work(&mut self) {
        self.reconciler.work();
    }

    fn wait(&mut self, time: Duration) {
        self.time.advance(time);
        self.work();
    }

    /// Works while there is anything to do at once.
    fn finish_audit(&mut self) {
        while self.reconciler.pause().is_some_and(|pause| pause.is_zero()) {
            self.work();
        }
    }

    fn real_servers(&self) -> Vec<(&'static str, u32)> {
        let node = self.lock();
        let Some(state) = node.kernel.state.virtual_servers.get(&web()) else {
            return Vec::new();
        };
        let text = |key: &ipvs::object::RealServerKey| -> &'static str {
            Box::leak(key.to_string().into_boxed_str())
        };
        state
            .real_servers
            .iter()
            .map(|(key, server)| (text(key), server.weight))
            .collect()
    }

    fn applied(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().applied)
    }
}

/// This node's Node object.
fn here() -> kpr_core::model::NodeInfo {
    kpr_core::model::NodeInfo {
        addresses: vec![ip("192.0.2.1")],
        ..kpr_core::model::NodeInfo::named("worker")
    }
}

fn web() -> VirtualServerKey {
    let cluster_ip = service("ns/web").cluster_ips[0];
    tcp(&format!("{cluster_ip}:80"))
}

#[test]
fn nothing_is_touched_before_services_and_slices_are_complete() {
    let mut fixture = Fixture::new();
    fixture.known_node();
    fixture.model(Event::ServicesReplaced(vec![service("ns/web").port(80)]));
    fixture.wait(Duration::from_mins(5));
    assert_eq!(fixture.lock().observations, []);
    assert_eq!(fixture.applied(), Vec::<String>::new());
}

#[test]
fn first_round_waits_for_the_node_but_not_for_ever() {
    let mut fixture = Fixture::new();
    fixture.model(Event::ServicesReplaced(vec![service("ns/web").port(80)]));
    fixture.model(Event::SlicesReplaced(vec![]));
    fixture.wait(Duration::from_secs(29));
    assert_eq!(fixture.applied(), Vec::<String>::new());
    fixture.wait(Duration::from_secs(1));
    assert!(
        fixture
            .lock()
            .kernel
            .state
            .virtual_servers
            .contains_key(&web())
    );
}

#[test]
fn api_server_and_dns_are_served_before_all_others() {
    let mut fixture = Fixture::new();
    fixture.known_node();
    let services = [
        "default/kubernetes",
        "kube-system/kube-dns",
        "aa/first",
        "zz/last",
    ];
    let address = |index: usize| format!("10.96.1.{}", 10 - index);
    let services = services.iter().enumerate();
    let services = services.map(|(i, name)| service(name).cluster_ips(&[&address(i)]).port(80));
    fixture.model(Event::ServicesReplaced(services.collect()));
    fixture.model(Event::SlicesReplaced(vec![]));
    fixture.work();
    let applied = fixture.applied();
    let at = |text: String| applied.iter().position(|step| *step == text).unwrap();
    let bound = |index| at(format!("add address {} to kube-ipvs0", address(index)));
    assert!(
        bound(0).max(bound(1)) < bound(2).min(bound(3)),
        "{applied:#?}"
    );
}

#[test]
fn change_of_one_endpoint_sends_one_step_and_reads_nothing() {
    let mut fixture = Fixture::programmed();
    fixture.scale(&["10.1.0.5", "10.1.0.6", "10.1.0.7"]);
    fixture.work();
    let step = format!(
        "add real server {} -> 10.1.0.7:8080 weight 1 masquerade",
        web()
    );
    assert_eq!(fixture.applied(), [step]);
    assert_eq!(fixture.lock().observations, []);
}

#[test]
fn restart_changes_nothing() {
    let before = Fixture::programmed();
    let mut after = Fixture::new();
    after.lock().kernel = before.lock().kernel.clone();
    after.known_node();
    after.model(Event::ServicesReplaced(vec![service("ns/web").port(80)]));
    let endpoints = vec![endpoint("10.1.0.5"), endpoint("10.1.0.6")];
    after.model(Event::SlicesReplaced(vec![
        slice("ns/web", "a", endpoints).port(8080),
    ]));
    after.work();
    assert_eq!(after.applied(), Vec::<String>::new());
}
