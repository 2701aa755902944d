// SPDX-License-Identifier: Apache-2.0
//! Manifests in, plans out: each case is a directory below `tests/golden` with numbered steps, and
//! each step a directory of manifests that takes the place of the one before. Beside it are the
//! plan that it leads to, of both families, as text and as JSON. After every step a second plan is
//! empty.
//!
//! `hack/update-golden.sh` writes the plans anew; the difference is to be looked at.
#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kpr_core::model::node::LocalDetector;
use kpr_core::model::{Event, IpFamily, ServiceView, Tracker};
use kpr_core::plan::ipvs::{Plan, Planner, State};
use kpr_core::plan::mode::{Drains as _, SlicedAudit as _};
use kpr_core::plan::ruleset::{Edit, render_edits};
use kpr_core::plan::testing::check::check;
use kpr_core::plan::testing::fake::FakeKernel;
use kpr_core::plan::{Context, IptablesContext, Planner as _, Step, testing};
use kube_proxy_rs::source::{Options, Unobserved, Update, manifests};
use serde::Serialize;

mod iptables;

/// One test for each case.
macro_rules! cases {
    ($($test:ident: $directory:literal,)*) => {
        $(#[test]
        fn $test() {
            run($directory);
        })*

        #[test]
        fn every_case_is_run() {
            let run = BTreeSet::from([$($directory),*]);
            let is_case = |path: &PathBuf| path.join("1").is_dir();
            let all = children(&golden()).into_iter().filter(is_case);
            let found: BTreeSet<String> = all.map(|path| name_of(&path)).collect();
            assert_eq!(found, run.into_iter().map(str::to_owned).collect());
        }

        /// The first of each kind, of all cases in both modes.
        #[test]
        fn each_kind_of_step_is_json_as_recorded() {
            let mut kinds = BTreeMap::new();
            for directory in [$($directory),*] {
                for step in play(directory) {
                    let of_ipvs = step.outcomes.iter().flat_map(|o| [&o.plan, &o.when_drained]);
                    let of_ipvs = of_ipvs.flat_map(Plan::steps).map(serde_json::to_value);
                    let of_iptables = step.iptables.iter().flat_map(|plan| plan.steps());
                    for json in of_ipvs.chain(of_iptables.map(serde_json::to_value)) {
                        let json = json.unwrap();
                        let kind = json["step"].as_str().unwrap().to_owned();
                        kinds.entry(kind).or_insert(json);
                    }
                }
            }
            let kinds: Vec<_> = kinds.into_values().collect();
            let json = serde_json::to_string_pretty(&kinds).unwrap();
            compare(&golden().join("steps.json"), &json);
        }
    };
}

cases! {
    cluster_ips_of_both_families: "cluster-ip",
    load_balancer_with_source_ranges: "load-balancer",
    local_policies_never_use_remote_endpoints: "policies",
    rollout_drains_old_endpoints: "rollout",
    oldest_service_keeps_a_shared_address: "shared-address",
}

/// What a step of a case leads to, in one family.
#[derive(Serialize)]
struct Outcome {
    family: IpFamily,
    plan: Plan,
    /// What is done when all connections to removed endpoints have ended.
    when_drained: Plan,
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// What a step of a case leads to, in both families.
struct Done {
    /// Its folder.
    path: PathBuf,
    outcomes: Vec<Outcome>,
    /// In iptables mode.
    iptables: [kpr_core::plan::iptables::Plan; 2],
}

/// Takes the steps of a case one after the other.
fn play(case: &str) -> Vec<Done> {
    let steps = children(&golden().join(case)).into_iter();
    let mut families: Vec<Family> = IpFamily::ALL.into_iter().map(Family::new).collect();
    let mut iptables = IpFamily::ALL.map(iptables::Family::new);
    let take = |path: PathBuf| {
        let events = read(&path);
        Done {
            path,
            outcomes: families
                .iter_mut()
                .map(|family| family.step(&events))
                .collect(),
            iptables: iptables.each_mut().map(|family| family.step(&events)),
        }
    };
    steps.filter(|path| path.is_dir()).map(take).collect()
}

fn run(case: &str) {
    for step in play(case) {
        let mut text = String::new();
        for outcome in &step.outcomes {
            writeln!(text, "# {}\n{}", outcome.family, outcome.plan).unwrap();
            if !outcome.when_drained.is_empty() {
                writeln!(
                    text,
                    "# {}, when drained\n{}",
                    outcome.family, outcome.when_drained
                )
                .unwrap();
            }
        }
        compare(&step.path.with_extension("txt"), text.trim_end());

        let mut rules = String::new();
        for plan in &step.iptables {
            let edits: Vec<Edit> = plan.steps().flat_map(Step::edits).cloned().collect();
            let batch = render_edits(&edits);
            write!(rules, "{plan}\n{batch}\n").unwrap();
        }
        compare(&step.path.with_extension("iptables.txt"), rules.trim_end());

        // What is derived needs no more than one example.
        if step.path.ends_with("cluster-ip/2") {
            let json = serde_json::to_string_pretty(&step.outcomes).unwrap();
            compare(&step.path.with_extension("json"), &json);
            let json = serde_json::to_string_pretty(&step.iptables).unwrap();
            compare(&step.path.with_extension("iptables.json"), &json);
        }
    }
}

fn compare(path: &Path, text: &str) {
    let text = format!("{text}\n");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(path, text).unwrap();
        return;
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert!(
        text == expected,
        "{} differs; run hack/update-golden.sh and look at the difference. It should be\n{text}",
        path.display()
    );
}

/// All objects of a directory, as the source sends them.
fn read(directory: &Path) -> Vec<Event> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let options = Options {
        node_name: "node-1".into(),
        allow_external_ips: true,
        annotations: kube_proxy_rs::source::Annotations::default(),
        cluster: kube_proxy_rs::source::ClusterSize::default(),
    };
    runtime.block_on(async {
        let (sender, mut updates) = tokio::sync::mpsc::channel(8);
        let source = manifests::run(directory, options, Arc::new(Unobserved), sender);
        let (mut services, mut slices) = (None, None);
        let receive = async {
            while services.is_none() || slices.is_none() {
                match updates.recv().await {
                    Some(Update::Model(event @ Event::ServicesReplaced(_))) => {
                        services = Some(event);
                    }
                    Some(Update::Model(event @ Event::SlicesReplaced(_))) => slices = Some(event),
                    Some(_) => {}
                    None => break,
                }
            }
        };
        tokio::select! {
            ended = source => panic!("the source ended: {ended:?}"),
            () = receive => {}
        }
        [services, slices].map(Option::unwrap).to_vec()
    })
}

/// One family of a node, with a kernel that is new.
struct Family {
    tracker: Tracker,
    planner: Planner,
    kernel: FakeKernel<State>,
}

impl Family {
    fn new(family: IpFamily) -> Self {
        let mut planner = Planner::new(context(family)).unwrap();
        planner.observed(State::default());
        Self {
            tracker: Tracker::default(),
            planner,
            kernel: FakeKernel::default(),
        }
    }

    fn step(&mut self, events: &[Event]) -> Outcome {
        for event in events {
            self.tracker.apply(event.clone());
        }
        for service in self.tracker.take().services {
            let family = self.planner.context().family;
            let changed = ServiceView::of(&self.tracker, &service, family);
            self.planner.update(&changed, &self.tracker);
        }
        let plan = self.planner.plan();
        self.apply(&plan);
        let draining = self.planner.draining().clone();
        let when_drained = self.planner.plan_drained(&draining);
        self.is_settled();
        self.apply(&when_drained);
        assert!(self.planner.draining().is_empty());
        self.is_settled();
        Outcome {
            family: self.planner.context().family,
            plan,
            when_drained,
        }
    }

    fn apply(&mut self, plan: &Plan) {
        assert_eq!(check(plan, self.planner.believed()), Ok(()), "{plan}");
        let report = self.kernel.apply(plan);
        assert!(report.is_success(), "{report:?}");
        self.planner.report(plan, &report);
        assert_eq!(self.planner.take_doubtful(), BTreeSet::new());
        assert_eq!(*self.planner.believed(), self.kernel.state);
    }

    /// Neither we nor a new process would do anything more.
    fn is_settled(&self) {
        assert_eq!(self.planner.plan().to_string(), "");
        let mut next = Planner::new(self.planner.context().clone()).unwrap();
        next.observed(self.kernel.state.clone());
        next.update_all(&self.tracker);
        assert_eq!(next.plan().to_string(), "");
    }
}

/// `node-1` at 192.168.0.10 and `fd00:192::10`.
fn context(family: IpFamily) -> Context {
    let (node, services, pods) = match family {
        IpFamily::V4 => ("192.168.0.10", "10.96.0.0/12", "10.244.0.0/16"),
        IpFamily::V6 => ("fd00:192::10", "fd00:96::/108", "fd00:244::/56"),
    };
    let node = node.parse().unwrap();
    let testing = testing::context(family);
    Context {
        zone: Some("zone-a".into()),
        node_addresses: [node].into(),
        node_port_addresses: [node].into(),
        service_cidrs: vec![services.parse().unwrap()],
        local_detector: LocalDetector::Cidr(pods.parse().unwrap()),
        iptables: IptablesContext {
            drop_invalid: false,
            ..testing.iptables
        },
        ..testing
    }
}
