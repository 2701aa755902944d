// SPDX-License-Identifier: Apache-2.0
//! What becomes of each field of an API object.

mod nodes;
mod slices;
mod two_worlds;

use std::num::NonZeroU16;

use serde_json::{Value, json};

use super::*;
use kpr_core::model::ipvs_options::Scheduler;
use kpr_core::model::{IpvsOptions, Protocol};

fn converter() -> Converter {
    Converter::new(&Options {
        node_name: "here".into(),
        allow_external_ips: true,
        annotations: Annotations::default(),
        cluster: ClusterSize::default(),
    })
}

/// An object with the fields of `changes` in the place of its own, or added.
fn merged(mut object: Value, changes: &Value) -> Value {
    match (&mut object, changes) {
        (Value::Object(fields), Value::Object(changes)) => {
            for (name, change) in changes {
                let field = fields.remove(name).unwrap_or_default();
                fields.insert(name.clone(), merged(field, change));
            }
            object
        }
        _ => changes.clone(),
    }
}

fn convert_service_with(options: &Options, changes: &Value) -> Converted<Service> {
    let object = merged(
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "ns", "uid": "u-1"},
            "spec": {
                "type": "ClusterIP", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
                "ipFamilies": ["IPv4"], "ports": [{"port": 80, "protocol": "TCP"}],
            },
        }),
        changes,
    );
    Converter::new(options).service(&serde_json::from_value(object).unwrap())
}

fn convert_service(changes: &Value) -> Converted<Service> {
    let options = Options {
        node_name: "here".into(),
        allow_external_ips: true,
        annotations: Annotations::default(),
        cluster: ClusterSize::default(),
    };
    convert_service_with(&options, changes)
}

/// The Service, which has no problems.
fn good_service(changes: &Value) -> Service {
    let (service, problems) = convert_service(changes);
    assert_eq!(problems, []);
    service.expect("it is one that the proxy serves")
}

fn is_dropped(changes: &Value) -> bool {
    let (service, problems) = convert_service(changes);
    assert_eq!(problems, []);
    service.is_none()
}

fn texts_of(items: &[impl ToString]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

/// Fields and reasons.
fn named(problems: &[Problem]) -> Vec<(&str, &'static str)> {
    problems
        .iter()
        .map(|problem| (problem.field.as_str(), problem.reason))
        .collect()
}

#[test]
fn a_service_keeps_what_a_proxy_needs() {
    let service = good_service(&json!({
        "metadata": {
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "annotations": {
                "kube-router.io/service.scheduler": "lc",
                "kubectl.kubernetes.io/last-applied-configuration": "{}",
            },
        },
        "spec": {
            "type": "NodePort",
            "ports": [
                {"name": "http", "port": 80, "nodePort": 30080, "targetPort": 8080},
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "sctp", "port": 53, "protocol": "SCTP", "nodePort": 0},
            ],
        },
    }));
    let port = |name: &str, protocol, port, node_port| PortSpec {
        name: name.into(),
        protocol,
        port,
        node_port: NonZeroU16::new(node_port),
    };
    let expected = Service {
        name: ServiceName::new("ns", "web"),
        uid: "u-1".into(),
        created: 1_767_323_045,
        cluster_ips: vec!["10.96.0.1".parse().unwrap()],
        ports: vec![
            port("http", Protocol::Tcp, 80, 30080),
            port("dns", Protocol::Udp, 53, 0),
            port("sctp", Protocol::Sctp, 53, 0),
        ],
        client_ip_affinity: None,
        external_ips: Vec::new(),
        load_balancer_vips: Vec::new(),
        load_balancer_source_ranges: Vec::new(),
        external_policy_local: false,
        internal_policy_local: false,
        health_check_node_port: None,
        ipvs: Some(Arc::new(IpvsOptions {
            scheduler: Some(Scheduler::Lc),
            ..IpvsOptions::default()
        })),
    };
    assert_eq!(service, expected);
}

#[test]
fn services_of_no_proxy_or_another_are_dropped() {
    assert!(is_dropped(
        &json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}})
    ));
    assert!(is_dropped(
        &json!({"spec": {"type": "ExternalName", "clusterIP": ""}})
    ));
    let label = json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": ""}}});
    assert!(is_dropped(&label));
    assert!(is_dropped(&json!({"spec": null})));
}

#[test]
fn a_service_without_cluster_ip_is_an_error_that_names_it() {
    let (service, problems) =
        convert_service(&json!({"spec": {"clusterIP": "", "clusterIPs": [], "ipFamilies": []}}));
    assert_eq!(service, None);
    assert_eq!(
        texts_of(&problems),
        ["Service ns/web: spec.clusterIP: missing"]
    );
}

#[test]
fn each_family_has_the_cluster_ip_that_ip_families_says() {
    let dual = good_service(&json!({"spec": {
        "clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.96.0.1"],
        "ipFamilies": ["IPv6", "IPv4"],
    }}));
    assert_eq!(texts_of(&dual.cluster_ips), ["fd00::1", "10.96.0.1"]);
    // A manifest may leave `ipFamilies` out, or `clusterIPs`.
    let bare = good_service(&json!({"spec": {
        "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "ipFamilies": null,
    }}));
    assert_eq!(texts_of(&bare.cluster_ips), ["10.96.0.1", "fd00::1"]);
    let bare = good_service(&json!({"spec": {"clusterIPs": null, "ipFamilies": null}}));
    assert_eq!(texts_of(&bare.cluster_ips), ["10.96.0.1"]);
}

#[test]
fn a_cluster_ip_of_the_wrong_family_or_twice_is_left_out() {
    let (service, problems) = convert_service(&json!({"spec": {
        "clusterIPs": ["10.96.0.1", "10.96.0.2"], "ipFamilies": ["IPv4", "IPv6"],
    }}));
    assert_eq!(texts_of(&service.unwrap().cluster_ips), ["10.96.0.1"]);
    assert_eq!(named(&problems), [("spec.clusterIPs[1]", reason::ADDRESS)]);
    let (service, problems) = convert_service(&json!({"spec": {
        "clusterIPs": ["10.96.0.1", "10.96.0.2"], "ipFamilies": null,
    }}));
    assert_eq!(texts_of(&service.unwrap().cluster_ips), ["10.96.0.1"]);
    assert_eq!(
        named(&problems),
        [("spec.clusterIPs[1]", reason::DUPLICATE)]
    );
}

#[test]
fn a_bad_port_is_left_out_alone() {
    let (service, problems) = convert_service(&json!({"spec": {"ports": [
        {"name": "zero", "port": 0},
        {"name": "good", "port": 80, "nodePort": 70000},
        {"name": "big", "port": 65536},
        {"name": "negative", "port": -1},
        {"name": "icmp", "port": 1, "protocol": "ICMP"},
        {"name": "good", "port": 81},
        {"name": "again", "port": 80},
        {"name": "again", "port": 80, "protocol": "UDP"},
    ]}}));
    let ports: Vec<_> = service
        .unwrap()
        .ports
        .iter()
        .map(|p| (p.name.to_string(), p.protocol))
        .collect();
    assert_eq!(
        ports,
        [
            ("good".to_owned(), Protocol::Tcp),
            ("again".to_owned(), Protocol::Udp)
        ]
    );
    assert_eq!(
        named(&problems),
        [
            ("spec.ports[0].port", reason::PORT),
            ("spec.ports[1].nodePort", reason::PORT),
            ("spec.ports[2].port", reason::PORT),
            ("spec.ports[3].port", reason::PORT),
            ("spec.ports[4].protocol", reason::PROTOCOL),
            ("spec.ports[5].name", reason::DUPLICATE),
            ("spec.ports[6].port", reason::DUPLICATE),
        ]
    );
}

#[test]
fn affinity_lasts_as_long_as_it_says_or_three_hours() {
    let seconds = |config: Value| {
        let spec = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config});
        let (service, problems) = convert_service(&json!({"spec": spec}));
        let affinity = service.unwrap().client_ip_affinity;
        (affinity.map(|time| time.as_secs()), problems.len())
    };
    assert_eq!(
        seconds(json!({"clientIP": {"timeoutSeconds": 30}})),
        (Some(30), 0)
    );
    assert_eq!(
        seconds(json!({"clientIP": {"timeoutSeconds": 86400}})),
        (Some(86400), 0)
    );
    assert_eq!(seconds(Value::Null), (Some(10800), 0));
    assert_eq!(
        seconds(json!({"clientIP": {"timeoutSeconds": 0}})),
        (Some(10800), 1)
    );
    assert_eq!(
        seconds(json!({"clientIP": {"timeoutSeconds": 86401}})),
        (Some(10800), 1)
    );
    assert_eq!(
        good_service(&json!({"spec": {"sessionAffinity": "None"}})).client_ip_affinity,
        None
    );
    let (service, problems) = convert_service(&json!({"spec": {"sessionAffinity": "Cookie"}}));
    assert_eq!(service.unwrap().client_ip_affinity, None);
    assert_eq!(named(&problems), [("spec.sessionAffinity", reason::VALUE)]);
}

#[test]
fn external_ips_count_unless_the_gate_is_off() {
    let changes = json!({"spec": {
        "externalIPs": ["192.0.2.1", "fd00::1", "web", "0.0.0.0"], "externalTrafficPolicy": "Local",
    }});
    let (service, problems) = convert_service(&changes);
    assert_eq!(
        texts_of(&service.unwrap().external_ips),
        ["192.0.2.1", "fd00::1"]
    );
    assert_eq!(
        named(&problems),
        [
            ("spec.externalIPs[2]", reason::ADDRESS),
            ("spec.externalIPs[3]", reason::ADDRESS)
        ]
    );
    let off = Options {
        node_name: "here".into(),
        allow_external_ips: false,
        annotations: Annotations::default(),
        cluster: ClusterSize::default(),
    };
    let (service, problems) = convert_service_with(&off, &changes);
    assert_eq!(service.unwrap().external_ips, Vec::<IpAddr>::new());
    assert_eq!(problems, []);
}

#[test]
fn only_vips_of_the_load_balancer_count() {
    let (service, problems) = convert_service(&json!({"status": {"loadBalancer": {"ingress": [
        {"ip": "192.0.2.1"},
        {"ip": "192.0.2.2", "ipMode": "VIP"},
        {"ip": "192.0.2.3", "ipMode": "Proxy"},
        {"hostname": "lb.example.com"},
        {"ip": "nonsense"},
        {"ip": "::ffff:192.0.2.4"},
    ]}}}));
    let vips = service.unwrap().load_balancer_vips;
    assert_eq!(texts_of(&vips), ["192.0.2.1", "192.0.2.2", "192.0.2.4"]);
    let field = "status.loadBalancer.ingress[4].ip";
    assert_eq!(named(&problems), [(field, reason::ADDRESS)]);
}

#[test]
fn bad_source_ranges_are_left_out_but_never_open_the_service() {
    let (service, problems) = convert_service(&json!({"spec": {
        "loadBalancerSourceRanges": [" 10.0.0.0/8 ", "10.0.0.0/33", "fd00::/64"],
    }}));
    let ranges = service.unwrap().load_balancer_source_ranges;
    assert_eq!(texts_of(&ranges), ["10.0.0.0/8", "fd00::/64"]);
    let field = "spec.loadBalancerSourceRanges[1]";
    assert_eq!(named(&problems), [(field, reason::SOURCE_RANGE)]);

    let (service, _) = convert_service(&json!({"spec": {"loadBalancerSourceRanges": ["all"]}}));
    let ranges = service.unwrap().load_balancer_source_ranges;
    assert_eq!(texts_of(&ranges), ["0.0.0.0/32", "::/128"]);
}

#[test]
fn external_policy_local_needs_a_way_in_from_outside() {
    let is_local = |type_: &str, external_ips: Value| {
        good_service(&json!({"spec": {
            "type": type_, "externalTrafficPolicy": "Local", "externalIPs": external_ips,
        }}))
        .external_policy_local
    };
    assert!(is_local("LoadBalancer", json!([])));
    assert!(is_local("NodePort", json!([])));
    assert!(is_local("ClusterIP", json!(["192.0.2.1"])));
    assert!(!is_local("ClusterIP", json!([])));
    let cluster = json!({"spec": {"type": "NodePort", "externalTrafficPolicy": "Cluster"}});
    assert!(!good_service(&cluster).external_policy_local);
}

#[test]
fn internal_policy_local_is_taken_as_it_is() {
    let policy = |policy: &str| json!({"spec": {"internalTrafficPolicy": policy}});
    assert!(good_service(&policy("Local")).internal_policy_local);
    assert!(!good_service(&policy("Cluster")).internal_policy_local);
}

#[test]
fn the_health_check_port_belongs_to_load_balancers_with_policy_local() {
    let port = |type_: &str, policy: &str, port: i32| {
        let (service, problems) = convert_service(&json!({"spec": {
            "type": type_, "externalTrafficPolicy": policy, "healthCheckNodePort": port,
        }}));
        let port = service.unwrap().health_check_node_port;
        (port.map_or(0, NonZeroU16::get), problems.len())
    };
    assert_eq!(port("LoadBalancer", "Local", 32000), (32000, 0));
    assert_eq!(port("LoadBalancer", "Local", 0), (0, 0));
    assert_eq!(port("LoadBalancer", "Local", 70000), (0, 1));
    assert_eq!(port("LoadBalancer", "Cluster", 32000), (0, 0));
    assert_eq!(port("NodePort", "Local", 32000), (0, 0));
}
