// SPDX-License-Identifier: Apache-2.0
//! Manifest directories on a real file system: what is written arrives, what breaks stays.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::super::Problem;
use super::super::problem::reason;
use super::*;
use kpr_core::model::{Event, Service};

mod written;

/// Nothing that is waited for takes this long on any machine that works.
const LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Recorder {
    problems: Mutex<Vec<Problem>>,
}

impl Observer for Recorder {
    fn problem(&self, problem: &Problem) {
        self.problems.lock().unwrap().push(problem.clone());
    }
}

/// A directory and the source that reads it.
struct Fixture {
    directory: TempDir,
    recorder: Arc<Recorder>,
    updates: Option<mpsc::Receiver<Update>>,
    task: Option<JoinHandle<Result<(), Error>>>,
}

impl Fixture {
    fn new() -> Self {
        Self {
            directory: TempDir::new().unwrap(),
            recorder: Arc::default(),
            updates: None,
            task: None,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// As a shell's redirection does: truncate, write, close.
    fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// As editors and `kubectl` plugins do: a new file takes the place of the old one.
    fn replace(&self, name: &str, text: &str) {
        let temporary = self.path().join(format!(".{name}.tmp"));
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.path().join(name)).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path().join(name)).unwrap();
    }

    /// Starts the source; returns the four updates of the first reading.
    async fn start(&mut self) -> Vec<Update> {
        let directory = self.path().to_owned();
        self.start_at(directory).await
    }

    async fn start_at(&mut self, directory: PathBuf) -> Vec<Update> {
        let (sender, receiver) = mpsc::channel(1);
        let options = Options {
            node_name: "here".into(),
            allow_external_ips: true,
            annotations: crate::source::Annotations::default(),
            cluster: crate::source::ClusterSize::default(),
        };
        let recorder = self.recorder.clone();
        self.updates = Some(receiver);
        self.task = Some(tokio::spawn(async move {
            run(&directory, options, recorder, sender).await
        }));
        let mut first = Vec::new();
        for _ in 0..4 {
            first.push(self.next().await);
        }
        first
    }

    async fn next(&mut self) -> Update {
        let updates = self.updates.as_mut().unwrap();
        tokio::time::timeout(LIMIT, updates.recv())
            .await
            .expect("an update arrives")
            .expect("the source runs")
    }

    async fn next_event(&mut self) -> Event {
        match self.next().await {
            Update::Model(event) => event,
            other => panic!("an event, not {other:?}"),
        }
    }

    /// The cluster IPs of the next applied Service.
    async fn next_service(&mut self) -> (String, Vec<String>) {
        match self.next_event().await {
            Event::ServiceApplied(service) => shown(&service),
            other => panic!("a Service, not {other:?}"),
        }
    }

    fn problems(&self) -> Vec<(String, String, &'static str)> {
        let root = format!("{}/", self.path().display());
        let problems = self.recorder.problems.lock().unwrap();
        problems
            .iter()
            .map(|problem| {
                let object = problem.object.replace(&root, "");
                (object, problem.field.clone(), problem.reason)
            })
            .collect()
    }

    /// Waits for the problem to be reported, whatever else arrives.
    async fn until_problem(&mut self, reason: &'static str) {
        let wait = async {
            while !self.problems().iter().any(|problem| problem.2 == reason) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LIMIT, wait)
            .await
            .expect("a problem is reported");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn shown(service: &Service) -> (String, Vec<String>) {
    let ips = service.cluster_ips.iter().map(ToString::to_string);
    (service.name.to_string(), ips.collect())
}

fn services(updates: &[Update]) -> Vec<(String, Vec<String>)> {
    updates
        .iter()
        .find_map(|update| match update {
            Update::Model(Event::ServicesReplaced(services)) => {
                Some(services.iter().map(shown).collect())
            }
            _ => None,
        })
        .expect("Services are in the first reading")
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
    )
}

fn named(name: &str, ip: &str) -> (String, Vec<String>) {
    (format!("default/{name}"), vec![ip.to_owned()])
}

#[tokio::test]
async fn every_kind_is_read_from_documents_lists_and_subdirectories() {
    let mut fixture = Fixture::new();
    fixture.write(
        "a.yaml",
        &format!(
            "{}---\n{}",
            service("a", "10.96.0.1"),
            service("b", "10.96.0.2")
        ),
    );
    fixture.write(
        "deep/er/list.yml",
        "apiVersion: v1\nkind: List\nitems:\n\
         - {apiVersion: v1, kind: Service, metadata: {name: c, namespace: x}, \
            spec: {clusterIP: 10.96.0.3, ports: [{port: 80}]}}\n\
         - {apiVersion: v1, kind: Pod, metadata: {name: p}}\n",
    );
    fixture.write(
        "slices.json",
        r#"{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "items": [
            {"metadata": {"name": "a-1", "labels": {"kubernetes.io/service-name": "a"}},
             "addressType": "IPv4", "ports": [{"port": 8080}],
             "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "here"}]}]}"#,
    );
    fixture.write(
        "node.yaml",
        "apiVersion: v1\nkind: Node\nmetadata: {name: here}\n\
         status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}\n---\n\
         apiVersion: v1\nkind: Node\nmetadata: {name: elsewhere}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\n\
         spec: {cidrs: [10.96.0.0/16, \"fd00:96::/108\"]}\n",
    );
    fixture.write(".hidden.yaml", &service("hidden", "10.96.0.66"));
    fixture.write("backup.yaml~", &service("backup", "10.96.0.66"));
    fixture.write("README.md", "no manifest");

    let updates = fixture.start().await;

    assert_eq!(
        services(&updates),
        [
            named("a", "10.96.0.1"),
            named("b", "10.96.0.2"),
            ("x/c".to_owned(), vec!["10.96.0.3".to_owned()])
        ]
    );
    let [
        Update::Node(Some(node)),
        Update::ServiceCidrs(cidrs),
        Update::Model(Event::SlicesReplaced(slices)),
        Update::Model(Event::ServicesReplaced(_)),
    ] = updates.as_slice()
    else {
        panic!("unexpected first reading: {updates:?}");
    };
    assert_eq!(
        node.addresses,
        ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(
        cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.96.0.0/16", "fd00:96::/108"]
    );
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0].service.to_string(), "default/a");
    assert!(slices[0].endpoints[0].local);
    assert_eq!(fixture.problems(), []);
}

#[tokio::test]
async fn a_written_replaced_or_removed_file_changes_only_its_objects() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &service("a", "10.96.0.1"));
    fixture.write("b.yaml", &service("b", "10.96.0.2"));
    fixture.start().await;

    fixture.write("a.yaml", &service("a", "10.96.0.11"));
    assert_eq!(fixture.next_service().await, named("a", "10.96.0.11"));
    fixture.replace("b.yaml", &service("b", "10.96.0.22"));
    assert_eq!(fixture.next_service().await, named("b", "10.96.0.22"));
    fixture.write("new/c.yaml", &service("c", "10.96.0.3"));
    assert_eq!(fixture.next_service().await, named("c", "10.96.0.3"));
    fixture.remove("a.yaml");
    let gone = Event::ServiceDeleted(kpr_core::model::ServiceName::new("default", "a"));
    assert_eq!(fixture.next_event().await, gone);
    fs::remove_dir_all(fixture.path().join("new")).unwrap();
    let gone = Event::ServiceDeleted(kpr_core::model::ServiceName::new("default", "c"));
    assert_eq!(fixture.next_event().await, gone);
}

#[tokio::test]
async fn a_broken_document_leaves_in_force_what_it_held() {
    let mut fixture = Fixture::new();
    let two = |second: &str| format!("{}---\n{second}", service("a", "10.96.0.1"));
    fixture.write("web.yaml", &two(&service("b", "10.96.0.2")));
    fixture.start().await;

    fixture.write(
        "web.yaml",
        &format!("{}---\nkind: [oops\n", service("a", "10.96.0.11")),
    );
    // The good document counts, and nothing is deleted.
    assert_eq!(fixture.next_service().await, named("a", "10.96.0.11"));
    fixture.write("z.yaml", &service("z", "10.96.0.99"));
    assert_eq!(fixture.next_service().await, named("z", "10.96.0.99"));
    let problems = fixture.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].0, "web.yaml (document 2)");
    assert!(problems[0].1.starts_with("line "), "{problems:?}");

    // Repaired without the second document: now it goes.
    fixture.write("web.yaml", &service("a", "10.96.0.11"));
    let gone = Event::ServiceDeleted(kpr_core::model::ServiceName::new("default", "b"));
    let mut event = fixture.next_event().await;
    if matches!(event, Event::ServiceApplied(_)) {
        event = fixture.next_event().await;
    }
    assert_eq!(event, gone);
}

#[tokio::test]
async fn a_typed_list_may_say_last_what_its_items_are() {
    let mut fixture = Fixture::new();
    let item = |name: &str, ip: &str| {
        format!(r#"{{"metadata": {{"name": "{name}"}}, "spec": {{"clusterIP": "{ip}"}}}}"#)
    };
    let items = [item("a", "10.96.0.1"), item("b", "10.96.0.2")].join(", ");
    let list = format!(r#"{{"items": [{items}], "kind": "ServiceList", "apiVersion": "v1"}}"#);
    fixture.write("list.json", &list);
    let first = fixture.start().await;
    let both = [named("a", "10.96.0.1"), named("b", "10.96.0.2")];
    assert_eq!(services(&first), both);
    assert_eq!(fixture.problems(), []);
}

#[tokio::test]
async fn a_list_that_breaks_off_loses_nothing() {
    let mut fixture = Fixture::new();
    let item = |name: &str, ip: &str| {
        format!(
            "- {{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, \
             spec: {{clusterIP: {ip}}}}}\n"
        )
    };
    let list = |items: &str| format!("apiVersion: v1\nkind: List\nitems:\n{items}");
    let whole = [item("a", "10.96.0.1"), item("b", "10.96.0.2")].concat();
    fixture.write("list.yaml", &list(&whole));
    fixture.start().await;
    let half = format!("{}- {{apiVersion: v1, kind: Serv", item("a", "10.96.0.11"));
    fixture.write("list.yaml", &list(&half));
    assert_eq!(fixture.next_service().await, named("a", "10.96.0.11"));
    fixture.write("z.yaml", &service("z", "10.96.0.99"));
    assert_eq!(fixture.next_service().await, named("z", "10.96.0.99"));
    assert_eq!(fixture.problems().len(), 1);
}

#[tokio::test]
async fn a_document_that_is_no_object_is_named() {
    let mut fixture = Fixture::new();
    fixture.write(
        "web.yaml",
        &format!("- 1\n---\n5\n---\n{}", service("a", "10.96.0.1")),
    );
    let first = fixture.start().await;
    assert_eq!(services(&first), [named("a", "10.96.0.1")]);
    let problem = ("web.yaml".to_owned(), String::new(), reason::TYPE);
    assert_eq!(fixture.problems(), [problem.clone(), problem]);
}

#[tokio::test]
async fn an_emptied_file_loses_nothing_until_it_is_removed() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &service("a", "10.96.0.1"));
    fixture.start().await;
    fixture.write("a.yaml", "");
    fixture.until_problem(reason::UNREADABLE).await;
    fixture.write("b.yaml", &service("b", "10.96.0.2"));
    assert_eq!(fixture.next_service().await, named("b", "10.96.0.2"));
    fixture.remove("a.yaml");
    let gone = Event::ServiceDeleted(kpr_core::model::ServiceName::new("default", "a"));
    assert_eq!(fixture.next_event().await, gone);
}

#[tokio::test]
async fn a_file_that_is_being_written_is_not_read() {
    use std::io::Write as _;
    let mut fixture = Fixture::new();
    fixture.write(
        "a.yaml",
        &format!(
            "{}---\n{}",
            service("a", "10.96.0.1"),
            service("b", "10.96.0.2")
        ),
    );
    fixture.start().await;
    let mut file = fs::File::create(fixture.path().join("a.yaml")).unwrap();
    file.write_all(service("a", "10.96.0.1").as_bytes())
        .unwrap();
    file.flush().unwrap();
    // Another file makes the source read, while `b` is not written yet.
    fixture.write("c.yaml", &service("c", "10.96.0.3"));
    assert_eq!(fixture.next_service().await, named("c", "10.96.0.3"));
    file.write_all(format!("---\n{}", service("b", "10.96.0.22")).as_bytes())
        .unwrap();
    drop(file);
    loop {
        match fixture.next_service().await {
            (name, _) if name == "default/a" => {}
            service => break assert_eq!(service, named("b", "10.96.0.22")),
        }
    }
}

#[tokio::test]
async fn a_config_map_volume_is_updated_in_one_step() {
    use std::os::unix::fs::symlink;
    let mut fixture = Fixture::new();
    let root = fixture.path().to_owned();
    fixture.write("..1/a.yaml", &service("a", "10.96.0.1"));
    symlink("..1", root.join("..data")).unwrap();
    symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
    let first = fixture.start().await;
    assert_eq!(services(&first), [named("a", "10.96.0.1")]);

    fixture.write("..2/a.yaml", &service("a", "10.96.0.11"));
    symlink("..2", root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    assert_eq!(fixture.next_service().await, named("a", "10.96.0.11"));
}

#[tokio::test]
async fn a_relative_directory_is_watched_too() {
    let mut fixture = Fixture::new();
    let up = std::env::current_dir().unwrap().components().count() - 1;
    let from_root = fixture.path().strip_prefix("/").unwrap();
    let relative = Path::new(&"../".repeat(up)).join(from_root);
    assert!(relative.is_relative());
    fixture.start_at(relative).await;
    fixture.write("a.yaml", &service("a", "10.96.0.1"));
    assert_eq!(fixture.next_service().await, named("a", "10.96.0.1"));
}

#[tokio::test]
async fn a_directory_that_is_replaced_is_watched_again() {
    let mut fixture = Fixture::new();
    let outer = TempDir::new_in(fixture.path()).unwrap();
    let inner = outer.path().join("manifests");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("a.yaml"), service("a", "10.96.0.1")).unwrap();
    fixture.start_at(inner.clone()).await;
    let next = outer.path().join("next");
    fs::create_dir(&next).unwrap();
    fs::write(next.join("a.yaml"), service("a", "10.96.0.11")).unwrap();
    fs::rename(&inner, outer.path().join("old")).unwrap();
    fs::rename(&next, &inner).unwrap();
    assert_eq!(fixture.next_service().await, named("a", "10.96.0.11"));
    fs::write(inner.join("a.yaml"), service("a", "10.96.0.12")).unwrap();
    assert_eq!(fixture.next_service().await, named("a", "10.96.0.12"));
}

#[tokio::test]
async fn of_two_equal_names_the_first_file_counts_and_the_other_takes_over() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &service("web", "10.96.0.1"));
    fixture.write("b.yaml", &service("web", "10.96.0.2"));
    let first = fixture.start().await;
    assert_eq!(services(&first), [named("web", "10.96.0.1")]);
    assert_eq!(
        fixture.problems(),
        [(
            "b.yaml: Service default/web".to_owned(),
            String::new(),
            reason::DUPLICATE_OBJECT
        )]
    );
    fixture.remove("a.yaml");
    assert_eq!(fixture.next_service().await, named("web", "10.96.0.2"));
}

#[tokio::test]
async fn bad_parts_are_named_and_the_rest_counts() {
    let mut fixture = Fixture::new();
    fixture.write(
        "web.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIP: 10.96.0.1\n  \
         colour: red\n  ports:\n  - {name: a, port: eighty}\n  - {name: b, port: 81, tint: blue}\n  \
         - {name: c, port: 70000}\n  - {name: d, port: 82, protocol: ICMP}\n  \
         externalIPs: [5, 192.0.2.1]\n",
    );
    fixture.write("no-ip.yaml", &service("no-ip", "''"));
    fixture.write(
        "no-name.yaml",
        "apiVersion: v1\nkind: Service\nspec: {clusterIP: 10.96.0.9}\n",
    );
    fixture.write(
        "old.yaml",
        "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\n",
    );
    let first = fixture.start().await;
    assert_eq!(services(&first), [named("web", "10.96.0.1")]);
    let Some(Update::Model(Event::ServicesReplaced(services))) = first.last() else {
        panic!("Services come last: {first:?}");
    };
    let ports: Vec<_> = services[0]
        .ports
        .iter()
        .map(|port| (&*port.name, port.port))
        .collect();
    assert_eq!(ports, [("b", 81)]);
    assert_eq!(services[0].external_ips.len(), 1);
    let expected = [
        (
            "no-ip.yaml: Service default/no-ip",
            "spec.clusterIP",
            reason::NO_CLUSTER_IP,
        ),
        (
            "no-name.yaml: Service default/",
            "metadata.name",
            reason::METADATA,
        ),
        ("old.yaml", "", reason::METADATA),
        (
            "web.yaml: Service default/web",
            "spec.externalIPs[0]",
            reason::TYPE,
        ),
        (
            "web.yaml: Service default/web",
            "spec.ports[0].port",
            reason::TYPE,
        ),
        (
            "web.yaml: Service default/web",
            "spec.colour",
            reason::UNKNOWN_FIELD,
        ),
        (
            "web.yaml: Service default/web",
            "spec.ports[1].tint",
            reason::UNKNOWN_FIELD,
        ),
        (
            "web.yaml: Service default/web",
            "spec.ports[2].port",
            reason::PORT,
        ),
        (
            "web.yaml: Service default/web",
            "spec.ports[3].protocol",
            reason::PROTOCOL,
        ),
        (
            "web.yaml: Service default/web",
            "spec.externalIPs[0]",
            reason::ADDRESS,
        ),
    ]
    .map(|(object, field, reason)| (object.to_owned(), field.to_owned(), reason));
    assert_eq!(fixture.problems(), expected);
}

#[tokio::test]
async fn a_problem_is_reported_once_however_often_the_file_is_read() {
    let mut fixture = Fixture::new();
    fixture.write("bad.yaml", &service("bad", "10.96.0.300"));
    fixture.start().await;
    fixture.write("b.yaml", &service("b", "10.96.0.2"));
    fixture.next_service().await;
    fixture.write("c.yaml", &service("c", "10.96.0.3"));
    fixture.next_service().await;
    assert_eq!(fixture.problems().len(), 1);
}

#[tokio::test]
async fn a_missing_directory_refuses_the_start() {
    let (sender, _receiver) = mpsc::channel::<Update>(1);
    let options = Options {
        node_name: "here".into(),
        allow_external_ips: true,
        annotations: crate::source::Annotations::default(),
        cluster: crate::source::ClusterSize::default(),
    };
    let missing = Path::new("/nonexistent/manifests");
    let error = run(missing, options, Arc::new(Recorder::default()), sender)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read the manifest directory /nonexistent/manifests"
    );
}
