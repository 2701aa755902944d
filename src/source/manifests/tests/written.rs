// SPDX-License-Identifier: Apache-2.0
//! Manifests as people write them, and not as an API server prints them.

use super::*;

/// What is said of the files, in its order.
fn said(fixture: &Fixture) -> Vec<String> {
    let root = format!("{}/", fixture.path().display());
    let problems = fixture.recorder.problems.lock().unwrap();
    let shown = problems
        .iter()
        .map(|problem| problem.to_string().replace(&root, ""));
    shown.collect()
}

/// The endpoints of the slices of the first reading: Service, address and whether it is ready.
fn endpoints(updates: &[Update]) -> Vec<(String, String, bool)> {
    let slices = updates.iter().find_map(|update| match update {
        Update::Model(Event::SlicesReplaced(slices)) => Some(slices),
        _ => None,
    });
    let mut found: Vec<_> = slices
        .unwrap()
        .iter()
        .flat_map(|slice| {
            slice
                .endpoints
                .iter()
                .map(|e| (slice.service.to_string(), e))
        })
        .map(|(service, e)| (service, e.address.to_string(), e.conditions.ready))
        .collect();
    found.sort();
    found
}

#[tokio::test]
async fn services_without_a_cluster_ip_are_named_once_with_the_way_out() {
    let mut fixture = Fixture::new();
    let all: Vec<String> = (0..9).map(|i| service(&format!("web-{i}"), "")).collect();
    fixture.write("a.yaml", &all[..8].join("---\n"));
    fixture.write("b.yaml", &all[8]);
    fixture.start().await;
    assert_eq!(
        said(&fixture),
        [
            "a.yaml: Service default/web-0: spec.clusterIP: missing, and nobody assigns one here: \
          use objects as the API server has them (kubectl get services,endpointslices -A -o yaml); \
          the same goes for default/web-1, default/web-2, default/web-3, default/web-4, \
          default/web-5 and 3 more"
        ]
    );
    fixture.write("c.yaml", &service("c", "10.96.0.3"));
    assert_eq!(fixture.next_service().await, named("c", "10.96.0.3"));
    assert_eq!(said(&fixture).len(), 1);
}

#[tokio::test]
async fn a_repeated_key_is_named_with_its_line_and_the_last_one_counts() {
    let mut fixture = Fixture::new();
    fixture.write(
        "web.yaml",
        "# two\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  labels:\n    app: x\n    \
         app: y\nspec: {clusterIP: 10.96.0.9, clusterIP: 10.96.0.1, ports: [{port: 80}]}\n",
    );
    fixture.write(
        "json.json",
        "{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {\"name\": \"json\"},\n\
         \"spec\": {\"clusterIP\": \"10.96.0.9\", \"clusterIP\": \"10.96.0.2\"}}",
    );
    let first = fixture.start().await;
    let expected = [named("json", "10.96.0.2"), named("web", "10.96.0.1")];
    assert_eq!(services(&first), expected);
    assert_eq!(
        said(&fixture),
        [
            "json.json (document 1): line 2: \"clusterIP\" stands here a second time; the last one counts",
            "web.yaml (document 1): line 9: \"app\" stands here a second time; the last one counts",
            "web.yaml (document 1): line 10: \"clusterIP\" stands here a second time; the last one counts",
        ]
    );
}

#[tokio::test]
async fn syntax_errors_have_one_line_number_which_is_the_files() {
    let mut fixture = Fixture::new();
    let good = service("a", "10.96.0.1");
    fixture.write("web.yaml", &format!("{good}---\nkind: x\n\ta: 1\n"));
    fixture.write("web.json", "{\n\"kind\": }\n");
    fixture.start().await;
    let line = good.lines().count() + 3;
    let said = said(&fixture);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[0].starts_with("web.json (document 1): line 2: "),
        "{said:?}"
    );
    assert!(
        said[1].starts_with(&format!("web.yaml (document 2): line {line}: ")),
        "{said:?}"
    );
    for text in said {
        assert_eq!(text.matches("line").count(), 1, "{text}");
    }
}

#[tokio::test]
async fn wrong_types_are_named_for_operators_and_names_with_dots_are_whole() {
    let mut fixture = Fixture::new();
    fixture.write(
        "web.yaml",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  annotations:\n    \
         kube-router.io/service.local: \"true\"\n    example.org/a.b: 5\nspec:\n  \
         clusterIP: 10.96.0.1\n  ports: [{port: eighty}, {port: 80}]\n",
    );
    let name = "apiVersion: v1\nkind: Service\nmetadata: {name: 123}\n";
    fixture.write("number.yaml", name);
    let first = fixture.start().await;
    assert_eq!(services(&first), [named("web", "10.96.0.1")]);
    assert_eq!(
        said(&fixture),
        [
            "number.yaml: Service default/: metadata.name: 123 is no text: put it in quotes",
            "web.yaml: Service default/web: metadata.annotations[example.org/a.b]: \
             want a text, not the number 5; it is ignored",
            "web.yaml: Service default/web: spec.ports[0].port: \
             want a whole number, not the text \"eighty\"; it is ignored",
            "web.yaml: Service default/web: metadata.annotations[kube-router.io/service.local]: \
             a setting of kube-router that is not used here; it is ignored",
        ]
    );
}

#[tokio::test]
async fn words_in_the_wrong_case_are_named() {
    let mut fixture = Fixture::new();
    fixture.write(
        "web.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIP: 10.96.0.1\n  \
         type: nodeport\n  externalTrafficPolicy: local\n  internalTrafficPolicy: LOCAL\n  \
         sessionAffinity: clientIP\n  ports: [{port: 80, protocol: tcp}]\n",
    );
    fixture.start().await;
    let fields: Vec<String> = fixture
        .problems()
        .into_iter()
        .map(|(_, field, _)| field)
        .collect();
    assert_eq!(
        fields,
        [
            "spec.type",
            "spec.externalTrafficPolicy",
            "spec.internalTrafficPolicy",
            "spec.ports[0].protocol",
            "spec.sessionAffinity",
        ]
    );
}

/// As those who know no EndpointSlices write it.
const ENDPOINTS: &str = "apiVersion: v1\nkind: Endpoints\nmetadata: {name: db}\nsubsets:\n\
    - addresses: [{ip: 192.0.2.1}, {ip: \"2001:db8::1\"}, {ip: nowhere}]\n  \
      notReadyAddresses: [{ip: 192.0.2.2}]\n  ports: [{port: 5432}]\n\
    - addresses: [{ip: 192.0.2.3}]\n  ports: [{name: admin, port: 8080}, {port: 99999}]\n";

#[tokio::test]
async fn endpoints_objects_are_read_as_a_cluster_mirrors_them() {
    let mut fixture = Fixture::new();
    fixture.write(
        "db.yaml",
        &format!("{}---\n{ENDPOINTS}", service("db", "10.96.0.1")),
    );
    let led = "apiVersion: v1\nkind: Endpoints\nmetadata:\n  name: led\n  annotations: \
               {control-plane.alpha.kubernetes.io/leader: x}\nsubsets: [{addresses: [{ip: 192.0.2.9}]}]\n";
    let skipped = "apiVersion: v1\nkind: Endpoints\nmetadata:\n  name: skipped\n  labels: \
                   {endpointslice.kubernetes.io/skip-mirror: \"true\"}\nsubsets: [{addresses: [{ip: 192.0.2.9}]}]\n";
    fixture.write("other.yaml", &format!("{led}---\n{skipped}"));
    let first = fixture.start().await;
    let db = |address: &str, ready| ("default/db".to_owned(), address.to_owned(), ready);
    assert_eq!(
        endpoints(&first),
        [
            db("192.0.2.1", true),
            db("192.0.2.2", false),
            db("192.0.2.3", true),
            db("2001:db8::1", true),
        ]
    );
    let problems = fixture.problems();
    let fields: Vec<&str> = problems
        .iter()
        .map(|(_, field, _)| field.as_str())
        .collect();
    assert_eq!(
        fields,
        ["subsets[0].addresses[2].ip", "subsets[1].ports[1].port"]
    );
    assert_eq!(problems[0].0, "db.yaml: Endpoints default/db");
}

#[tokio::test]
async fn endpoints_of_a_service_with_a_selector_are_not_mirrored() {
    let mut fixture = Fixture::new();
    let with_selector = "apiVersion: v1\nkind: Service\nmetadata: {name: db}\n\
                         spec: {clusterIP: 10.96.0.1, selector: {app: db}}\n";
    fixture.write("service.yaml", with_selector);
    fixture.write("endpoints.yaml", ENDPOINTS);
    let first = fixture.start().await;
    assert_eq!(endpoints(&first), []);
    // Without the selector they come back, though their own file is as it was.
    fixture.write("service.yaml", &service("db", "10.96.0.1"));
    let mut applied = 0;
    loop {
        match fixture.next_event().await {
            Event::SliceApplied(_) => applied += 1,
            Event::ServiceApplied(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(applied, 3);
}

#[tokio::test]
async fn what_is_no_regular_file_is_named_and_not_read() {
    let mut fixture = Fixture::new();
    let pipe = fixture.path().join("pipe.yaml");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
    std::os::unix::fs::symlink("/dev/zero", fixture.path().join("zero.yaml")).unwrap();
    fixture.write("web.yaml", &service("web", "10.96.0.1"));
    let first = fixture.start().await;
    assert_eq!(services(&first), [named("web", "10.96.0.1")]);
    assert_eq!(
        said(&fixture),
        [
            "pipe.yaml: not a regular file; it is ignored",
            "zero.yaml: not a regular file; it is ignored",
        ]
    );
}

#[tokio::test]
async fn a_link_to_nothing_is_named_and_what_it_held_stays() {
    let mut fixture = Fixture::new();
    std::os::unix::fs::symlink("gone.txt", fixture.path().join("link.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", fixture.path().join("no-manifest")).unwrap();
    fixture.write("web.yaml", &service("web", "10.96.0.1"));
    let first = fixture.start().await;
    assert_eq!(services(&first), [named("web", "10.96.0.1")]);
    let line =
        "link.yaml: a link to gone.txt, which is not there; what it held before stays in force";
    assert_eq!(said(&fixture), [line]);
    fixture.write("gone.txt", &service("late", "10.96.0.2"));
    assert_eq!(fixture.next_service().await, named("late", "10.96.0.2"));
    fixture.remove("gone.txt");
    fixture.write("z.yaml", &service("z", "10.96.0.3"));
    assert_eq!(fixture.next_service().await, named("z", "10.96.0.3"));
    assert_eq!(said(&fixture), [line, line]);
    fixture.remove("link.yaml");
    match fixture.next_event().await {
        Event::ServiceDeleted(name) => assert_eq!(name.to_string(), "default/late"),
        other => panic!("{other:?}"),
    }
}
