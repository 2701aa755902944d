// SPDX-License-Identifier: Apache-2.0
//! What `kubectl` and the controllers do to Services and their endpoints reaches the kernel.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use crate::Test;
use crate::oracle::Lines;
use crate::world::World;
use kpr_testkit::wait::must;

pub(crate) const TESTS: &[Test] = &[
    (
        "services_of_every_kind_are_programmed",
        services_of_every_kind_are_programmed,
    ),
    (
        "every_change_of_a_service_arrives",
        every_change_of_a_service_arrives,
    ),
    ("endpoints_come_change_and_go", endpoints_come_change_and_go),
    ("a_deployment_is_scaled", a_deployment_is_scaled),
    (
        "node_ports_follow_the_addresses_of_the_node",
        node_ports_follow_the_addresses_of_the_node,
    ),
];

// === manifests ===

/// A Service with three protocols, of both families; `spec` is more of its specification.
pub(crate) fn service(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ipFamilyPolicy: PreferDualStack, {spec}\
         ports: [{{name: http, port: 80}}, {{name: dns, port: 53, protocol: UDP}}, {{name: sig, port: 5000, protocol: SCTP}}]}}\n"
    )
}

/// The slice of a Service, made by hand. An endpoint is an address, its node, and what it is beside
/// ready: `unready` or `terminating`.
pub(crate) fn slice(name: &str, endpoints: &[&str]) -> String {
    let is_v6 = endpoints
        .first()
        .is_some_and(|endpoint| endpoint.contains(':'));
    let kind = if is_v6 { "IPv6" } else { "IPv4" };
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|endpoint| {
            let words: Vec<&str> = endpoint.split_whitespace().collect();
            let conditions = match words.get(2) {
                None => "ready: true",
                Some(&"unready") => "ready: false, serving: false",
                Some(&"terminating") => "ready: false, serving: true, terminating: true",
                Some(other) => panic!("{other}"),
            };
            let (address, node) = (words[0], words[1]);
            format!("{{addresses: [{address:?}], nodeName: {node}, conditions: {{{conditions}}}}}")
        })
        .collect();
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {kind}\n\
         metadata: {{name: {name}-{suffix}, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         ports: [{{name: http, port: 8080}}, {{name: dns, port: 5353, protocol: UDP}}, {{name: sig, port: 5001, protocol: SCTP}}]\n\
         endpoints: [{endpoints}]\n",
        suffix = kind.to_lowercase(),
        endpoints = endpoints.join(", ")
    )
}

/// Endpoints of both families on both nodes.
pub(crate) fn slices(name: &str) -> String {
    slice(name, &["10.1.0.11 kpr-guest", "10.2.0.11 kpr-far"])
        + &slice(name, &["fd00:1::11 kpr-guest", "fd00:2::11 kpr-far"])
}

// === reading ===

/// The real servers of a virtual server, without what else is said about them.
pub(crate) fn real_servers(
    lines: &Lines,
    protocol: &str,
    address: IpAddr,
    port: u16,
) -> Vec<String> {
    let socket = SocketAddr::new(address, port);
    let start = format!("{protocol} {socket} -> ");
    lines
        .iter()
        .filter_map(|line| line.strip_prefix(&start))
        .map(|rest| rest.split(' ').next().unwrap().to_owned())
        .collect()
}

fn has_virtual_server(lines: &Lines, protocol: &str, address: IpAddr, port: u16) -> bool {
    let start = format!("{protocol} {} ", SocketAddr::new(address, port));
    lines.iter().any(|line| line.starts_with(&start))
}

/// How many lines have all of these texts in them.
fn count(lines: &Lines, text: &str) -> usize {
    lines.iter().filter(|line| line.contains(text)).count()
}

// === tests ===

fn services_of_every_kind_are_programmed(world: &mut World) {
    let kinds = [
        ("plain", ""),
        ("nodeport", "type: NodePort, "),
        (
            "affine",
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 120}}, ",
        ),
        ("external", "externalIPs: [203.0.113.5, '2001:db8::5'], "),
        (
            "external-local",
            "type: NodePort, externalIPs: [203.0.113.6], externalTrafficPolicy: Local, ",
        ),
        (
            "balanced",
            "type: LoadBalancer, loadBalancerSourceRanges: [198.18.0.0/15, 192.0.2.0/24, '2001:db8:1::/48'], ",
        ),
        (
            "balanced-local",
            "type: LoadBalancer, externalTrafficPolicy: Local, ",
        ),
        ("internal-local", "internalTrafficPolicy: Local, "),
        ("only-six", "ipFamilies: [IPv6], "),
        ("headless", "clusterIP: None, "),
    ];
    let mut manifest = String::new();
    for (name, spec) in kinds {
        let made = service(name, spec);
        manifest += &if name == "only-six" {
            made.replace("PreferDualStack", "SingleStack")
        } else {
            made
        };
        manifest += &slices(name);
    }
    manifest += "---\napiVersion: v1\nkind: Service\nmetadata: {name: alias}\nspec: {type: ExternalName, externalName: example.com}\n";
    manifest += "---\napiVersion: v1\nkind: Service\nmetadata: {name: others, labels: {service.kubernetes.io/service-proxy-name: other}}\nspec: {ports: [{port: 80}]}\n";
    world.create(&manifest);
    for (name, ip) in [
        ("balanced", "203.0.113.10"),
        ("balanced-local", "203.0.113.11"),
    ] {
        world.patch_status(
            crate::world::NAMESPACE,
            &format!("service/{name}"),
            &format!(r#"{{"loadBalancer": {{"ingress": [{{"ip": "{ip}"}}, {{"ip": "2001:db8::a{}"}}]}}}}"#, &ip[11..]),
        );
    }
    let lines = world.agree();

    // What agreement alone does not say: that there was something to agree on.
    for address in world.cluster_ips("plain") {
        for (protocol, port) in [("TCP", 80), ("UDP", 53), ("SCTP", 5000)] {
            assert_eq!(real_servers(&lines, protocol, address, port).len(), 2);
        }
    }
    let local = world.cluster_ips("internal-local")[0];
    assert_eq!(real_servers(&lines, "TCP", local, 80), ["10.1.0.11:8080"]);
    let local = "203.0.113.11".parse().unwrap();
    assert_eq!(real_servers(&lines, "TCP", local, 80), ["10.1.0.11:8080"]);
    assert_eq!(count(&lines, "rr persistent 120"), 6);
    assert_eq!(count(&lines, "TCP 203.0.113.5:80 -> "), 2);
    assert_eq!(
        count(&lines, "set KUBE-LOAD-BALANCER-SOURCE-IP 203.0.113.10"),
        3
    );
    assert_eq!(count(&lines, "set KUBE-HEALTH-CHECK-NODE-PORT "), 1);
    let of_six = node_ports(&lines, "KUBE-6-NODE-PORT-HASH", "tcp");
    assert_eq!(of_six.len(), 4, "{of_six:?}");

    world.kubectl("delete services --all");
    let lines = world.agree();
    assert_eq!(
        count(&lines, "address "),
        1,
        "that of default/kubernetes: {lines:#?}"
    );
}

fn every_change_of_a_service_arrives(world: &mut World) {
    world
        .create(&(service("web", "type: LoadBalancer, ") + &slices("web") + &service("stays", "")));
    world.agree();
    let address = world.cluster_ips("web")[0];

    let port = r#"[{"op": "replace", "path": "/spec/ports/0/port", "value": 81},
        {"op": "replace", "path": "/spec/ports/1/nodePort", "value": 30999}]"#;
    world.testbed.kubectl(&[
        "-n",
        crate::world::NAMESPACE,
        "patch",
        "service",
        "web",
        "--type=json",
        "-p",
        port,
    ]);
    let lines = world.agree();
    assert!(
        has_virtual_server(&lines, "TCP", address, 81)
            && !has_virtual_server(&lines, "TCP", address, 80)
    );
    assert!(node_ports(&lines, "KUBE-NODE-PORT-HASH", "udp").contains("30999"));

    let affinity = r#"{"spec": {"sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local", "externalIPs": ["203.0.113.7"]}}"#;
    world.patch("service/web", affinity);
    world.patch_status(
        crate::world::NAMESPACE,
        "service/web",
        r#"{"loadBalancer": {"ingress": [{"ip": "203.0.113.12"}]}}"#,
    );
    let lines = world.agree();
    assert_eq!(count(&lines, "address 203.0.113."), 2);
    assert!(lines.contains("TCP 203.0.113.12:81 rr persistent 10800"));

    let source = r#"{"spec": {"sessionAffinity": "None", "externalTrafficPolicy": "Cluster", "externalIPs": null,
        "loadBalancerSourceRanges": ["192.0.2.0/24"]}}"#;
    world.patch("service/web", source);
    world.patch_status(
        crate::world::NAMESPACE,
        "service/web",
        r#"{"loadBalancer": {"ingress": [{"ip": "203.0.113.13"}, {"ip": "203.0.113.14", "ipMode": "Proxy"}]}}"#,
    );
    let lines = world.agree();
    assert_eq!(count(&lines, "address 203.0.113."), 1);
    assert!(lines.contains("set KUBE-LOAD-BALANCER-SOURCE-CIDR 203.0.113.13,tcp:81,192.0.2.0/24"));

    world.patch(
        "service/web",
        r#"{"spec": {"type": "ClusterIP", "loadBalancerSourceRanges": null}}"#,
    );
    world.agree();
    world.kubectl("label service/web service.kubernetes.io/service-proxy-name=other");
    let lines = world.agree();
    assert!(!has_virtual_server(&lines, "TCP", address, 81));
    world.kubectl("label service/web service.kubernetes.io/service-proxy-name-");
    let lines = world.agree();
    assert_eq!(real_servers(&lines, "TCP", address, 81).len(), 2);

    // One request that takes the Service away and makes another of that name.
    world.testbed.kubectl_as(
        "admin",
        &[
            "-n",
            crate::world::NAMESPACE,
            "replace",
            "--force",
            "-f",
            "-",
        ],
        &service("web", ""),
    );
    world.agree();
    world.kubectl("delete service web");
    world.agree();
}

fn endpoints_come_change_and_go(world: &mut World) {
    world.create(&service(
        "web",
        "type: NodePort, externalTrafficPolicy: Local, ",
    ));
    let lines = world.agree();
    let address = world.cluster_ips("web")[0];
    let http = |lines: &Lines| real_servers(lines, "TCP", address, 80);
    assert!(has_virtual_server(&lines, "TCP", address, 80) && http(&lines).is_empty());

    for (endpoints, wanted) in [
        (
            &["10.1.0.11 kpr-guest"] as &[&str],
            &["10.1.0.11:8080"] as &[&str],
        ),
        (
            &[
                "10.1.0.11 kpr-guest",
                "10.2.0.11 kpr-far",
                "10.2.0.12 kpr-far",
            ],
            &["10.1.0.11:8080", "10.2.0.11:8080", "10.2.0.12:8080"],
        ),
        (
            &[
                "10.1.0.11 kpr-guest unready",
                "10.2.0.11 kpr-far terminating",
                "10.2.0.12 kpr-far",
            ],
            &["10.2.0.12:8080"],
        ),
        // Those on their way out serve as long as there is nobody else.
        (
            &[
                "10.1.0.11 kpr-guest terminating",
                "10.2.0.11 kpr-far unready",
            ],
            &["10.1.0.11:8080"],
        ),
    ] {
        world.apply(&slice("web", endpoints));
        let lines = world.agree();
        assert_eq!(http(&lines), wanted);
    }
    // A second slice of the same Service, with an endpoint of the first.
    world.apply(&slice("web", &["10.1.0.11 kpr-guest"]));
    world.apply(
        &slice("web", &["10.1.0.11 kpr-guest", "10.2.0.13 kpr-far"])
            .replace("web-ipv4", "web-second"),
    );
    let lines = world.agree();
    assert_eq!(http(&lines), ["10.1.0.11:8080", "10.2.0.13:8080"]);
    world.kubectl("delete endpointslice web-ipv4");
    let lines = world.agree();
    assert_eq!(http(&lines), ["10.1.0.11:8080", "10.2.0.13:8080"]);
    world.kubectl("delete endpointslice web-second");
    let lines = world.agree();
    assert!(has_virtual_server(&lines, "TCP", address, 80) && http(&lines).is_empty());
}

/// The controllers make Pods and slices; the test is the kubelet.
fn a_deployment_is_scaled(world: &mut World) {
    world.create(include_str!("shop.yaml"));
    let address = world.cluster_ips("shop")[0];
    let near = world.cluster_ips("near")[0];
    let mut numbers = 21..;
    for replicas in [2, 4, 1] {
        world.kubectl(&format!("scale deployment shop --replicas={replicas}"));
        let pods = running_pods(world, replicas, &mut numbers);
        let lines = until_servers(world, address, replicas);
        assert_eq!(real_servers(&lines, "TCP", address, 80), pods);
    }

    // One more on the other node: only who prefers its zone does not see it.
    world.create(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: far, labels: {app: shop}}\nspec: {nodeName: kpr-far, \
         containers: [{name: c, image: none, ports: [{name: http, containerPort: 8080}]}]}",
    );
    set_pod_status(world, "far", "10.2.0.21", true);
    let lines = until_servers(world, address, 2);
    assert_eq!(real_servers(&lines, "TCP", near, 80).len(), 1);
    // It fails its readiness probe, and goes.
    set_pod_status(world, "far", "10.2.0.21", false);
    until_servers(world, address, 1);
    set_pod_status(world, "far", "10.2.0.21", true);
    until_servers(world, address, 2);
    world.kubectl("delete pod far --force --grace-period=0");
    until_servers(world, address, 1);
    // No garbage collector runs here.
    world.kubectl("delete deployments,replicasets,pods --all --force --grace-period=0");
    until_servers(world, address, 0);
}

/// Waits until the `ReplicaSet` has so many Pods and gives an address to those that lack one.
/// Returns where all of them are reached.
fn running_pods(
    world: &World,
    count: usize,
    numbers: &mut impl Iterator<Item = u8>,
) -> Vec<String> {
    let (leaving, staying): (Vec<Value>, Vec<Value>) = must("the pods are there", || {
        let list = world.kubectl("get pods -l app=shop -o json");
        let mut list: Value = serde_json::from_str(&list).unwrap();
        let Value::Array(pods) = list["items"].take() else {
            panic!("{list}");
        };
        let is_leaving = |pod: &Value| !pod["metadata"]["deletionTimestamp"].is_null();
        let (leaving, staying): (Vec<_>, Vec<_>) = pods.into_iter().partition(is_leaving);
        if staying.len() == count {
            Ok((leaving, staying))
        } else {
            Err(format!("{} of {count}", staying.len()))
        }
    });
    let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap().to_owned();
    // There is no kubelet to say that they have ended.
    for pod in &leaving {
        let name = name(pod);
        world.kubectl(&format!(
            "delete pod {name} --force --grace-period=0 --ignore-not-found"
        ));
    }
    let mut sockets: Vec<String> = staying
        .iter()
        .map(|pod| {
            let ip = pod["status"]["podIP"].as_str().map(str::to_owned);
            let ip = ip.unwrap_or_else(|| {
                let ip = format!("10.1.0.{}", numbers.next().unwrap());
                set_pod_status(world, &name(pod), &ip, true);
                ip
            });
            format!("{ip}:8080")
        })
        .collect();
    sockets.sort();
    sockets
}

fn set_pod_status(world: &World, pod: &str, ip: &str, is_ready: bool) {
    let ready = if is_ready { "True" } else { "False" };
    let status = format!(
        r#"{{"phase": "Running", "podIP": "{ip}", "podIPs": [{{"ip": "{ip}"}}], "conditions": [{{"type": "Ready", "status": "{ready}"}}]}}"#
    );
    world.patch_status(crate::world::NAMESPACE, &format!("pod/{pod}"), &status);
}

/// Waits until the controller's slices have arrived; then all must agree.
fn until_servers(world: &mut World, address: IpAddr, servers: usize) -> Lines {
    must("the controller's endpoints have arrived", || {
        let found = real_servers(&world.kernel().lines, "TCP", address, 80);
        if found.len() == servers {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
    world.agree()
}

fn node_ports_follow_the_addresses_of_the_node(world: &mut World) {
    world.create(&(service("web", "type: NodePort, ") + &slices("web")));
    let lines = world.agree();
    assert_eq!(count(&lines, "TCP 198.51.100.7:"), 0);
    world.guest.run("ip address add 198.51.100.7/32 dev to-pod; ip address add 2001:db8:7::7/64 dev to-pod nodad");
    let lines = world.agree();
    // A virtual server with two real servers.
    assert_eq!(count(&lines, "TCP 198.51.100.7:"), 3);
    assert_eq!(count(&lines, "TCP [2001:db8:7::7]:"), 3);
    world.guest.run(
        "ip address del 198.51.100.7/32 dev to-pod; ip address del 2001:db8:7::7/64 dev to-pod",
    );
    let lines = world.agree();
    assert_eq!(count(&lines, "TCP 198.51.100.7:"), 0);
}

/// The ports in a set of node ports, whatever the addresses.
fn node_ports<'a>(lines: &'a Lines, set: &str, protocol: &str) -> BTreeSet<&'a str> {
    let prefix = format!("set {set} ");
    lines
        .iter()
        .filter_map(|line| line.strip_prefix(&prefix))
        .filter_map(|entry| entry.split_once(&format!(",{protocol}:")))
        .map(|(_, port)| port)
        .collect()
}
