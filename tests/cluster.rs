// SPDX-License-Identifier: Apache-2.0
//! The source against a real kube-apiserver, changed with `kubectl`, as the user that kube-proxy
//! is.
//!
//! `KPR_TESTBED` names the folder that `hack/testbed/up` made; without it every test reads
//! *ignored*. The API server is stopped and started by some tests, so they run one after the other.
#![cfg(test)]

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kpr_core::model::{Event, IpFamily, NodeInfo, ServiceName, Tracker};
use kube_proxy_rs::source::kubernetes::{self, Encoding};
use kube_proxy_rs::source::{self, Observer, Options, Problem, Request, Source, Update};
use libtest_mimic::{Arguments, Trial};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use kpr_testkit::testbed::{Restart, Testbed, odd_node, odd_node_status};

/// Nothing that is waited for takes this long on a machine that works.
const LIMIT: Duration = Duration::from_mins(2);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One API server for all.
    arguments.test_threads = Some(1);
    let testbed = std::env::var_os("KPR_TESTBED").map(PathBuf::from);
    let trial = |name: &str, test: fn(&Testbed)| {
        let directory = testbed.clone();
        Trial::test(name, move || {
            let directory = directory.ok_or("KPR_TESTBED is not set")?;
            test(&Testbed::open(&directory)?);
            Ok(())
        })
        .with_ignored_flag(testbed.is_none())
    };
    let trials = vec![
        trial("what_kubectl_does_arrives", what_kubectl_does_arrives),
        trial(
            "services_that_are_not_ours_never_arrive",
            services_that_are_not_ours_never_arrive,
        ),
        trial("our_node_is_followed", our_node_is_followed),
        trial("service_cidrs_are_known", service_cidrs_are_known),
        trial("one_reading_is_complete", one_reading_is_complete),
        trial(
            "an_api_server_that_restarts_loses_nothing",
            an_api_server_that_restarts_loses_nothing,
        ),
        trial(
            "an_expired_watch_finds_what_it_missed",
            an_expired_watch_finds_what_it_missed,
        ),
        trial("odd_objects_cost_nobody", odd_objects_cost_nobody),
        trial("both_forms_are_the_same", both_forms_are_the_same),
        trial(
            "the_role_of_kube_proxy_is_enough_and_nothing_more",
            the_role_of_kube_proxy_is_enough_and_nothing_more,
        ),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Counts what the source observes.
#[derive(Debug, Default)]
struct Recorder {
    unanswered: AtomicUsize,
    problems: Mutex<Vec<Problem>>,
}

impl Observer for Recorder {
    fn request(&self, request: &Request<'_>) {
        if request.code.is_none() {
            self.unanswered.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn problem(&self, problem: &Problem) {
        self.problems.lock().unwrap().push(problem.clone());
    }
}

/// The source as kube-proxy's user, and what it has told so far.
struct Cluster<'a> {
    testbed: &'a Testbed,
    runtime: tokio::runtime::Runtime,
    task: JoinHandle<Result<(), source::Error>>,
    updates: mpsc::Receiver<Update>,
    recorder: Arc<Recorder>,
    tracker: Tracker,
    node: Option<NodeInfo>,
    cidrs: Vec<String>,
    /// Addresses of all Nodes.
    nodes: Vec<String>,
    /// Lists of Services, and of slices, that have arrived.
    lists: usize,
    slice_lists: usize,
    /// Every Service that was ever there.
    seen: Vec<String>,
    /// What the test made, to be removed.
    made: Vec<String>,
}

fn options() -> Options {
    Options {
        node_name: "kpr-here".into(),
        allow_external_ips: true,
        annotations: source::Annotations::default(),
        cluster: source::ClusterSize::default(),
    }
}

fn config(testbed: &Testbed, encoding: Encoding) -> Source {
    Source::Kubernetes(kubernetes::Config {
        kubeconfig: Some(testbed.kubeconfig("proxy")),
        encoding,
        ..kubernetes::Config::default()
    })
}

impl<'a> Cluster<'a> {
    /// Starts the source and waits for its first lists.
    fn follow(testbed: &'a Testbed) -> Self {
        Self::follow_in(testbed, Encoding::Protobuf)
    }

    fn follow_in(testbed: &'a Testbed, encoding: Encoding) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (sender, updates) = mpsc::channel(64);
        let recorder = Arc::new(Recorder::default());
        let source = config(testbed, encoding);
        let task = runtime.spawn(source::run(source, options(), recorder.clone(), sender));
        let mut cluster = Self {
            testbed,
            runtime,
            task,
            updates,
            recorder,
            tracker: Tracker::default(),
            node: None,
            cidrs: Vec::new(),
            nodes: Vec::new(),
            lists: 0,
            slice_lists: 0,
            seen: Vec::new(),
            made: Vec::new(),
        };
        cluster.until("both kinds are complete", |cluster| {
            cluster.tracker.is_complete()
        });
        cluster
    }

    fn take_in(&mut self, update: Update) {
        match update {
            Update::Model(event) => {
                match &event {
                    Event::ServicesReplaced(services) => {
                        self.lists += 1;
                        self.seen
                            .extend(services.iter().map(|s| s.name.name.to_string()));
                    }
                    Event::SlicesReplaced(_) => self.slice_lists += 1,
                    Event::ServiceApplied(service) => self.seen.push(service.name.name.to_string()),
                    _ => {}
                }
                self.tracker.apply(event);
            }
            Update::Node(node) => self.node = node,
            Update::Nodes(all) => {
                self.nodes = all.addresses.iter().map(ToString::to_string).collect();
            }
            Update::ApiServers(_) => {}
            Update::ServiceCidrs(cidrs) => {
                self.cidrs = cidrs.iter().map(ToString::to_string).collect();
            }
        }
    }

    /// Takes in updates until something is so.
    fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + LIMIT;
        while !is_so(self) {
            let received = self
                .runtime
                .block_on(async { tokio::time::timeout_at(deadline, self.updates.recv()).await });
            let update = received
                .unwrap_or_else(|_| panic!("waited too long until {what}"))
                .expect("the source runs");
            self.take_in(update);
        }
    }

    fn make(&mut self, kind: &str, name: &str, manifest: &str) {
        self.made.push(format!("{kind}/{name}"));
        self.testbed.apply(manifest);
    }

    /// Port and cluster IP families of a Service, if it is there.
    fn service(&self, name: &str) -> Option<(u16, usize)> {
        let service = self.tracker.service(&ServiceName::new("default", name))?;
        Some((service.ports[0].port, service.cluster_ips.len()))
    }

    fn endpoints(&self, name: &str) -> Vec<String> {
        let name = ServiceName::new("default", name);
        let ports = self.tracker.endpoints(&name, IpFamily::V4);
        let show = |endpoint: &kpr_core::model::Endpoint| {
            let local = if endpoint.local { " local" } else { "" };
            format!("{}:{}{local}", endpoint.address, endpoint.port)
        };
        ports.values().flatten().map(show).collect()
    }

    /// Takes in what waits.
    fn take_in_all(&mut self) {
        while let Ok(update) = self.updates.try_recv() {
            self.take_in(update);
        }
    }

    /// Waits until the source has asked in vain this many times more.
    fn until_unanswered(&self, times: usize) {
        let count = || self.recorder.unanswered.load(Ordering::Relaxed);
        let wanted = count() + times;
        self.runtime.block_on(async {
            let wait = async {
                while count() < wanted {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(LIMIT, wait)
                .await
                .expect("the source keeps asking");
        });
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        self.task.abort();
        let made = std::mem::take(&mut self.made);
        if !made.is_empty() {
            let mut arguments = vec!["delete", "--ignore-not-found", "--wait=false"];
            arguments.extend(made.iter().map(String::as_str));
            // The test's own failure is what counts.
            drop(self.testbed.kubectl_as("admin", &arguments, ""));
        }
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  ipFamilyPolicy: PreferDualStack\n  ports: [{{name: http, port: {port}}}]\n"
    )
}

fn slice(name: &str, endpoints: &[(&str, &str)]) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-1, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n"
    );
    for (address, node) in endpoints {
        writeln!(text, "- {{addresses: [{address}], nodeName: {node}}}").unwrap();
    }
    text
}

fn what_kubectl_does_arrives(testbed: &Testbed) {
    let mut cluster = Cluster::follow(testbed);
    cluster.make("service", "kpr-web", &service("kpr-web", 80));
    let families = if testbed.env("CIDR6").is_empty() {
        1
    } else {
        2
    };
    cluster.until("the Service is there", |c| {
        c.service("kpr-web") == Some((80, families))
    });

    let two = [("10.0.0.1", "kpr-here"), ("10.0.0.2", "kpr-there")];
    cluster.make("endpointslice", "kpr-web-1", &slice("kpr-web", &two));
    cluster.until("both endpoints are there", |c| {
        c.endpoints("kpr-web") == ["10.0.0.1:8080 local", "10.0.0.2:8080"]
    });
    testbed.apply(&slice("kpr-web", &two[1..]));
    cluster.until("one endpoint is gone", |c| {
        c.endpoints("kpr-web") == ["10.0.0.2:8080"]
    });

    let patch = r#"[{"op": "replace", "path": "/spec/ports/0/port", "value": 81}]"#;
    testbed.kubectl(&["patch", "service", "kpr-web", "--type=json", "-p", patch]);
    cluster.until("the port has changed", |c| {
        c.service("kpr-web") == Some((81, families))
    });

    testbed.kubectl(&["delete", "endpointslice/kpr-web-1", "service/kpr-web"]);
    cluster.until("both are gone", |c| {
        c.service("kpr-web").is_none() && c.endpoints("kpr-web").is_empty()
    });
    assert_eq!(*cluster.recorder.problems.lock().unwrap(), []);
}

fn services_that_are_not_ours_never_arrive(testbed: &Testbed) {
    let mut cluster = Cluster::follow(testbed);
    let label = "service.kubernetes.io/service-proxy-name";
    let other = service("kpr-other", 80).replace(
        "namespace: default}",
        &format!("namespace: default, labels: {{{label}: other}}}}"),
    );
    cluster.make("service", "kpr-other", &other);
    let headless = service("kpr-headless", 80).replace("spec:", "spec:\n  clusterIP: None");
    cluster.make("service", "kpr-headless", &headless);
    cluster.make(
        "service",
        "kpr-name",
        "apiVersion: v1\nkind: Service\nmetadata: {name: kpr-name, namespace: default}\n\
         spec: {type: ExternalName, externalName: example.com}\n",
    );
    cluster.make("service", "kpr-ours", &service("kpr-ours", 80));
    cluster.until("ours is there", |c| c.service("kpr-ours").is_some());
    for name in ["kpr-other", "kpr-headless", "kpr-name"] {
        assert!(!cluster.seen.iter().any(|seen| seen == name), "{name}");
    }
    // One that is given to another proxy is gone for us.
    testbed.kubectl(&["label", "service", "kpr-ours", &format!("{label}=other")]);
    cluster.until("ours is no longer ours", |c| {
        c.service("kpr-ours").is_none()
    });
    testbed.kubectl(&["label", "service", "kpr-ours", &format!("{label}-")]);
    cluster.until("ours is ours again", |c| c.service("kpr-ours").is_some());
    assert_eq!(*cluster.recorder.problems.lock().unwrap(), []);
}

fn our_node_is_followed(testbed: &Testbed) {
    let mut cluster = Cluster::follow(testbed);
    let node = |name: &str, zone: &str| {
        format!(
            "apiVersion: v1\nkind: Node\n\
             metadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n\
             spec: {{podCIDRs: [10.1.0.0/24], podCIDR: 10.1.0.0/24}}\n"
        )
    };
    let zone = |c: &Cluster<'_>| c.node.as_ref().and_then(|node| node.zone.clone());
    cluster.make("node", "kpr-there", &node("kpr-there", "x"));
    cluster.make("node", "kpr-here", &node("kpr-here", "a"));
    cluster.until("our node is there", |c| zone(c).as_deref() == Some("a"));
    let pods = &cluster.node.as_ref().unwrap().pod_cidrs;
    assert_eq!(
        pods.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.1.0.0/24"]
    );
    testbed.kubectl(&[
        "label",
        "--overwrite",
        "node/kpr-here",
        "topology.kubernetes.io/zone=b",
    ]);
    cluster.until("the zone has changed", |c| zone(c).as_deref() == Some("b"));
    testbed.kubectl(&["delete", "node/kpr-here"]);
    cluster.until("our node is gone", |c| c.node.is_none());
}

fn service_cidrs_are_known(testbed: &Testbed) {
    let mut cluster = Cluster::follow(testbed);
    let expected: Vec<String> = ["CIDR4", "CIDR6"]
        .into_iter()
        .map(|name| testbed.env(name).to_owned())
        .filter(|cidr| !cidr.is_empty())
        .collect();
    cluster.until("they are there", |c| c.cidrs == expected);
}

/// All that there is, read once.
fn read(testbed: &Testbed, encoding: Encoding) -> Vec<Update> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let source = config(testbed, encoding);
    let reading = async {
        let read = source::read(source, options(), Arc::new(source::Unobserved));
        tokio::time::timeout(LIMIT, read).await.expect("it ends")
    };
    runtime.block_on(reading).unwrap()
}

/// A real server's objects are the same in both forms.
fn both_forms_agree(testbed: &Testbed) {
    let all = |encoding| {
        let mut updates = read(testbed, encoding);
        // Kinds arrive in any order.
        updates.sort_by_key(|update| format!("{update:?}"));
        updates
    };
    assert_eq!(all(Encoding::Protobuf), all(Encoding::Json));
}

fn one_reading_is_complete(testbed: &Testbed) {
    let updates = read(testbed, Encoding::Protobuf);
    let mut tracker = Tracker::default();
    for update in updates {
        if let Update::Model(event) = update {
            tracker.apply(event);
        }
    }
    assert!(tracker.is_complete());
    let kubernetes = ServiceName::new("default", "kubernetes");
    assert!(tracker.service(&kubernetes).is_some());
    assert!(!tracker.endpoints(&kubernetes, IpFamily::V4).is_empty());
}

fn an_api_server_that_restarts_loses_nothing(testbed: &Testbed) {
    let mut cluster = Cluster::follow(testbed);
    cluster.make("service", "kpr-web", &service("kpr-web", 80));
    let one = [("10.0.0.1", "kpr-here")];
    cluster.make("endpointslice", "kpr-web-1", &slice("kpr-web", &one));
    cluster.until("it is there", |c| {
        c.service("kpr-web").is_some() && !c.endpoints("kpr-web").is_empty()
    });
    cluster.until("the ranges are there", |c| !c.cidrs.is_empty());
    let cidrs = cluster.cidrs.clone();
    let restart = Restart(testbed);
    testbed.apiserver("stop");
    // Long enough for every watch to have failed several times; `cluster_ipvs` waits half a minute.
    cluster.until_unanswered(16);
    // What it said on its way out (its own endpoint goes) is taken in; nothing of ours is lost.
    cluster.take_in_all();
    let unchanged =
        |c: &Cluster<'_>| c.service("kpr-web").is_some() && c.endpoints("kpr-web").len() == 1;
    assert!(unchanged(&cluster));
    drop(restart);
    testbed.kubectl(&["delete", "endpointslice/kpr-web-1"]);
    cluster.make("service", "kpr-late", &service("kpr-late", 80));
    cluster.until("what changed since is there", |c| {
        c.service("kpr-late").is_some() && c.endpoints("kpr-web").is_empty()
    });
    assert!(cluster.service("kpr-web").is_some());
    assert_eq!(cluster.cidrs, cidrs);
}

fn an_expired_watch_finds_what_it_missed(testbed: &Testbed) {
    let mut cluster = Cluster::follow(testbed);
    cluster.make("service", "kpr-web", &service("kpr-web", 80));
    cluster.make("service", "kpr-lost", &service("kpr-lost", 80));
    cluster.until("both are there", |c| {
        c.service("kpr-web").is_some() && c.service("kpr-lost").is_some()
    });
    let lists = cluster.lists;
    let restart = Restart(testbed);
    testbed.kill_apiserver();
    // Behind the server's back one is deleted, and history moves on: the version that the watch
    // stands at is older than all that the server will know.
    testbed.delete_from_etcd("/registry/services/specs/default/kpr-lost");
    testbed.move_history_on();
    drop(restart);
    cluster.until("the deletion is found", |c| c.service("kpr-lost").is_none());
    assert_eq!(cluster.lists, lists + 1, "the watch had expired");
    assert!(cluster.service("kpr-web").is_some());
    cluster.make("service", "kpr-late", &service("kpr-late", 80));
    cluster.until("the new watch works", |c| c.service("kpr-late").is_some());
}

/// Whatever the API server takes in fields that the proxy has no use for, in every kind that it
/// reads.
fn odd_objects_cost_nobody(testbed: &Testbed) {
    let mut cluster = Cluster::follow(testbed);
    let mut in_json = Cluster::follow_in(testbed, Encoding::Json);
    cluster.until("the ranges are there", |c| !c.cidrs.is_empty());
    let cidrs = cluster.cidrs.clone();
    cluster.make("service", "kpr-web", &service("kpr-web", 80));
    let mut odd = service("kpr-odd", 80);
    // Nodes are looked at once there is such an address.
    odd += "  externalIPs: [203.0.113.77]\n";
    cluster.make("service", "kpr-odd", &odd);
    let odd = slice("kpr-odd", &[("10.0.0.1", "kpr-here")])
        .replace("port: 8080", "port: 8080, appProtocol: example.com/odd")
        .replace(
            "nodeName: kpr-here",
            "nodeName: kpr-here, zone: '\u{1f980}', hostname: odd, conditions: {}, \
             targetRef: {kind: Odd, uid: odd, fieldPath: spec.odd, resourceVersion: odd}",
        );
    cluster.make("endpointslice", "kpr-odd-1", &odd);
    for node in ["kpr-here", "kpr-odd"] {
        cluster.make("node", node, &odd_node(node));
    }
    let all_there = |c: &Cluster<'_>, port: u16, endpoint: &str, nodes: [&str; 2]| {
        let port_of = |name| c.service(name).map(|(port, _)| port);
        let addresses = |node: &NodeInfo| node.addresses.iter().map(ToString::to_string).collect();
        (port_of("kpr-web"), port_of("kpr-odd")) == (Some(80), Some(port))
            && c.endpoints("kpr-odd") == [format!("{endpoint}:8080 local")]
            && c.node.as_ref().map(addresses) == Some(vec![nodes[0].to_owned()])
            && nodes.iter().all(|node| c.nodes.iter().any(|it| it == node))
            && c.cidrs == cidrs
    };
    testbed.patch_status("node/kpr-here", &odd_node_status("192.0.2.1"));
    testbed.patch_status("node/kpr-odd", &odd_node_status("192.0.2.2"));
    let nodes = ["192.0.2.1", "192.0.2.2"];
    cluster.until("all are there", |c| all_there(c, 80, "10.0.0.1", nodes));
    let lists = (cluster.lists, cluster.slice_lists);

    for object in [
        "service/kpr-odd",
        "endpointslice/kpr-odd-1",
        "node/kpr-here",
        "node/kpr-odd",
        "servicecidr/kubernetes",
    ] {
        testbed.make_odd(object);
    }
    // What the proxy needs of them is seen nevertheless.
    let port = r#"[{"op": "replace", "path": "/spec/ports/0/port", "value": 81}]"#;
    testbed.kubectl(&["patch", "service", "kpr-odd", "--type=json", "-p", port]);
    let address = r#"[{"op": "replace", "path": "/endpoints/0/addresses/0", "value": "10.0.0.2"}]"#;
    let slice = "endpointslice/kpr-odd-1";
    testbed.kubectl(&["patch", slice, "--type=json", "-p", address]);
    testbed.patch_status("node/kpr-here", &odd_node_status("192.0.2.3"));
    testbed.patch_status("node/kpr-odd", &odd_node_status("192.0.2.4"));
    let nodes = ["192.0.2.3", "192.0.2.4"];
    let all_there = |c: &Cluster<'_>| all_there(c, 81, "10.0.0.2", nodes);
    cluster.until("all are there", all_there);
    in_json.until("all are there in JSON", all_there);
    both_forms_agree(testbed);
    let after = (cluster.lists, cluster.slice_lists);
    assert_eq!(after, lists, "nothing is listed again");
    // So it is for one that starts now.
    let mut second = Cluster::follow(testbed);
    second.until("all are there after a start", all_there);
    assert_eq!(*cluster.recorder.problems.lock().unwrap(), []);
    assert_eq!(*second.recorder.problems.lock().unwrap(), []);
}

/// Every field that counts, in lists and in watches.
fn both_forms_are_the_same(testbed: &Testbed) {
    let mut cluster = Cluster::follow(testbed);
    let mut in_json = Cluster::follow_in(testbed, Encoding::Json);
    let full = "apiVersion: v1\nkind: Service\n\
         metadata:\n  name: kpr-full\n  namespace: default\n  \
           annotations: {kube-proxy-rs.io/scheduler: rr, example.com/other: x}\n\
         spec:\n  type: LoadBalancer\n  ipFamilyPolicy: PreferDualStack\n  \
           externalIPs: [192.0.2.7]\n  externalTrafficPolicy: Local\n  \
           internalTrafficPolicy: Local\n  loadBalancerSourceRanges: [10.0.0.0/8]\n  \
           sessionAffinity: ClientIP\n  \
           sessionAffinityConfig: {clientIP: {timeoutSeconds: 30}}\n  \
           ports: [{name: a, port: 80, targetPort: http}, {name: b, port: 53, protocol: UDP}]\n";
    cluster.make("service", "kpr-full", full);
    let status = r#"{"status": {"loadBalancer": {"ingress": [
        {"ip": "192.0.2.8"}, {"ip": "192.0.2.9", "ipMode": "Proxy"}, {"hostname": "lb.example"}
    ]}}}"#;
    let patch = [
        "patch",
        "service",
        "kpr-full",
        "--subresource=status",
        "--type=merge",
        "-p",
    ];
    testbed.kubectl(&[&patch[..], &[status]].concat());
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {name: kpr-full-1, namespace: default, labels: {kubernetes.io/service-name: kpr-full}}\n\
         addressType: IPv4\nports: [{name: a, port: 8080}, {name: b, port: 53, protocol: UDP}]\n\
         endpoints:\n\
         - {addresses: [10.0.0.1], nodeName: kpr-here, zone: z,\n    \
            conditions: {ready: false, serving: true, terminating: true},\n    \
            hints: {forZones: [{name: z}], forNodes: [{name: kpr-here}]}}\n\
         - {addresses: [10.0.0.2], conditions: {ready: true}}\n";
    cluster.make("endpointslice", "kpr-full-1", slice);
    let name = ServiceName::new("default", "kpr-full");
    let is_there = |c: &Cluster<'_>| {
        let service = c.tracker.service(&ServiceName::new("default", "kpr-full"));
        service.is_some_and(|service| !service.load_balancer_vips.is_empty())
            && !c.endpoints("kpr-full").is_empty()
    };
    cluster.until("it is there", is_there);
    in_json.until("it is there in JSON", is_there);
    let service = cluster.tracker.service(&name);
    assert_eq!(service, in_json.tracker.service(&name));
    assert_eq!(cluster.endpoints("kpr-full"), in_json.endpoints("kpr-full"));
    both_forms_agree(testbed);
}

fn the_role_of_kube_proxy_is_enough_and_nothing_more(testbed: &Testbed) {
    // All tests above run as that user; here it is shown that it is a restricted one.
    let may = |verb: &str, resource: &str| {
        let arguments = ["auth", "can-i", verb, resource, "--all-namespaces"];
        testbed.kubectl_as("proxy", &arguments, "").status.success()
    };
    assert!(may("watch", "services"));
    assert!(!may("get", "services"));
    assert!(!may("list", "secrets"));
}
