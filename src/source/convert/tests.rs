// SPDX-License-Identifier: Apache-2.0
//! What becomes of each field of an API object.

use std::num::NonZeroU16;

use serde_json::{Value, json};

use super::*;
use crate::model::ipvs_options::Scheduler;
use crate::model::{IpvsOptions, Protocol};

fn converter() -> Converter {
    Converter::new(&Options {
        node_name: "here".into(),
        allow_external_ips: true,
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
        ["Service ns/web: spec.clusterIP: there is none"]
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

fn convert_slice(changes: &Value) -> Converted<EndpointSlice> {
    let object = merged(
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "web-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.0.0.1"]}],
        }),
        changes,
    );
    converter().slice(&serde_json::from_value(object).unwrap())
}

fn good_slice(changes: &Value) -> EndpointSlice {
    let (slice, problems) = convert_slice(changes);
    assert_eq!(problems, []);
    slice.expect("it is one that the proxy uses")
}

#[test]
fn a_slice_keeps_what_a_proxy_needs() {
    let slice = good_slice(&json!({"metadata": {"annotations": {
        "endpoints.kubernetes.io/last-change-trigger-time": "1970-01-01T00:00:01.000000002Z",
    }}}));
    let expected = EndpointSlice {
        name: SliceName {
            namespace: "ns".into(),
            name: "web-1".into(),
        },
        service: ServiceName::new("ns", "web"),
        family: IpFamily::V4,
        ports: vec![SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: vec![SliceEndpoint {
            address: "10.0.0.1".parse().unwrap(),
            local: false,
            conditions: Conditions::from_api(None, None, None),
            node_hint: NodeHint::Absent,
            zone_hints: Vec::new().into(),
            weight: None,
        }],
        last_change_trigger: Some(1_000_000_002),
    };
    assert_eq!(slice, expected);
}

#[test]
fn a_trigger_time_that_cannot_be_read_is_none() {
    let annotations = json!({"endpoints.kubernetes.io/last-change-trigger-time": "yesterday"});
    let slice = good_slice(&json!({"metadata": {"annotations": annotations}}));
    assert_eq!(slice.last_change_trigger, None);
}

#[test]
fn slices_of_no_service_are_dropped() {
    for labels in [
        json!({"kubernetes.io/service-name": ""}),
        json!({"service.kubernetes.io/headless": ""}),
    ] {
        let dropped = convert_slice(&json!({"metadata": {"labels": labels}}));
        assert_eq!(dropped, (None, Vec::new()));
    }
    let unlabelled = convert_slice(&json!({"metadata": {"labels": null}}));
    assert_eq!(unlabelled, (None, Vec::new()));
}

#[test]
fn slices_of_names_instead_of_addresses_are_refused() {
    for address_type in ["FQDN", "IPX", ""] {
        let (slice, problems) = convert_slice(&json!({"addressType": address_type}));
        assert_eq!(slice, None);
        assert_eq!(named(&problems), [("addressType", reason::VALUE)]);
    }
}

#[test]
fn conditions_that_are_left_out_mean_ready() {
    let slice = good_slice(&json!({"endpoints": [
        {"addresses": ["10.0.0.1"]},
        {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
        {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": false}},
        {"addresses": ["10.0.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
    ]}));
    let conditions: Vec<_> = slice
        .endpoints
        .iter()
        .map(|endpoint| endpoint.conditions)
        .collect();
    let expected = [
        (true, true, false),
        (false, true, false),
        (false, false, false),
        (false, true, true),
    ]
    .map(|(ready, serving, terminating)| Conditions {
        ready,
        serving,
        terminating,
    });
    assert_eq!(conditions, expected);
}

#[test]
fn only_endpoints_on_our_node_are_local() {
    let slice = good_slice(&json!({"endpoints": [
        {"addresses": ["10.0.0.1"], "nodeName": "here"},
        {"addresses": ["10.0.0.2"], "nodeName": "HERE"},
        {"addresses": ["10.0.0.3"]},
    ]}));
    let local: Vec<_> = slice
        .endpoints
        .iter()
        .map(|endpoint| endpoint.local)
        .collect();
    assert_eq!(local, [true, false, false]);
}

#[test]
fn hints_are_seen_from_our_node() {
    let slice = good_slice(&json!({"endpoints": [
        {"addresses": ["10.0.0.1"], "hints": {
            "forNodes": [{"name": "there"}, {"name": "here"}], "forZones": [{"name": "a"}, {"name": "b"}],
        }},
        {"addresses": ["10.0.0.2"], "hints": {"forNodes": [{"name": "there"}]}},
        {"addresses": ["10.0.0.3"], "hints": {"forNodes": [], "forZones": []}},
    ]}));
    let hints: Vec<_> = slice
        .endpoints
        .iter()
        .map(|endpoint| (endpoint.node_hint, texts_of(&endpoint.zone_hints)))
        .collect();
    let zones = vec!["a".to_owned(), "b".to_owned()];
    assert_eq!(
        hints,
        [
            (NodeHint::Here, zones),
            (NodeHint::Elsewhere, Vec::new()),
            (NodeHint::Absent, Vec::new())
        ]
    );
}

#[test]
fn bad_endpoints_and_ports_are_left_out_alone() {
    let (slice, problems) = convert_slice(&json!({
        "ports": [
            {"name": "a", "port": 1},
            {"name": "b"},
            {"name": "c", "port": 0},
            {"name": "d", "port": 70000},
            {"name": "e", "port": 2, "protocol": "tcp"},
            {"port": 3},
        ],
        "endpoints": [
            {"addresses": ["010.0.0.01", "10.0.0.2"]},
            {"addresses": []},
            {"addresses": ["fd00::1"]},
            {"addresses": ["10.0.0.300"]},
            {"addresses": ["::ffff:10.0.0.9"]},
        ],
    }));
    let slice = slice.unwrap();
    let ports: Vec<_> = slice
        .ports
        .iter()
        .map(|port| (&*port.name, port.port))
        .collect();
    assert_eq!(ports, [("a", 1), ("", 3)]);
    let addresses: Vec<_> = slice
        .endpoints
        .iter()
        .map(|endpoint| endpoint.address)
        .collect();
    assert_eq!(texts_of(&addresses), ["10.0.0.1", "10.0.0.9"]);
    assert_eq!(
        named(&problems),
        [
            ("ports[1].port", reason::PORT),
            ("ports[2].port", reason::PORT),
            ("ports[3].port", reason::PORT),
            ("ports[4].protocol", reason::PROTOCOL),
            ("endpoints[1].addresses", reason::ADDRESS),
            ("endpoints[2].addresses[0]", reason::ADDRESS),
            ("endpoints[3].addresses[0]", reason::ADDRESS),
        ]
    );
}

fn convert_node(changes: &Value) -> Converted<NodeInfo> {
    let object = merged(
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "here"}}),
        changes,
    );
    converter().node(&serde_json::from_value(object).unwrap())
}

#[test]
fn a_nodes_internal_addresses_come_first() {
    let (node, problems) = convert_node(&json!({
        "metadata": {"labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"]},
        "status": {"addresses": [
            {"type": "Hostname", "address": "here"},
            {"type": "ExternalIP", "address": "203.0.113.1"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "fd00::1"},
        ]},
    }));
    assert_eq!(problems, []);
    let expected = NodeInfo {
        name: "here".into(),
        addresses: ["192.0.2.1", "fd00::1", "203.0.113.1"]
            .map(|ip| ip.parse().unwrap())
            .to_vec(),
        pod_cidrs: ["10.1.0.0/24", "fd00:1::/64"]
            .map(|cidr| cidr.parse().unwrap())
            .to_vec(),
        zone: Some("a".into()),
        being_deleted: false,
        marked_by_autoscaler: false,
    };
    assert_eq!(node, Some(expected));
}

#[test]
fn a_node_with_only_the_old_pod_cidr_has_that() {
    let (node, _) = convert_node(&json!({"spec": {"podCIDR": "10.1.0.0/24"}}));
    assert_eq!(texts_of(&node.unwrap().pod_cidrs), ["10.1.0.0/24"]);
}

#[test]
fn a_node_that_is_about_to_go_says_so() {
    let leaving = |changes: Value| convert_node(&changes).0.unwrap().is_leaving();
    let taint = |key: &str| json!({"spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}});
    assert!(!leaving(json!({})));
    assert!(!leaving(taint("other")));
    assert!(leaving(taint("ToBeDeletedByClusterAutoscaler")));
    assert!(leaving(
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
    ));
}

#[test]
fn other_nodes_are_none_of_our_business() {
    assert_eq!(
        convert_node(
            &json!({"metadata": {"name": "there"}, "status": {"addresses": [
                {"type": "InternalIP", "address": "bad"},
            ]}})
        ),
        (None, Vec::new())
    );
}

#[test]
fn service_cidrs_that_cannot_be_read_are_left_out() {
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"},
        "spec": {"cidrs": ["10.97.0.0/16", "10.98.0.0"]},
    });
    let (cidrs, problems) = converter().service_cidr(&serde_json::from_value(object).unwrap());
    assert_eq!(texts_of(&cidrs.unwrap()), ["10.97.0.0/16"]);
    assert_eq!(
        texts_of(&problems),
        [
            "ServiceCIDR more: spec.cidrs[1]: \"10.98.0.0\" is not an address range (address/prefix length)"
        ]
    );
}

#[test]
fn zone_names_are_kept_once() {
    let mut converter = converter();
    let mut slice = || {
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"], "hints": {"forZones": [{"name": "a"}]}}],
        });
        let object = serde_json::from_value(object).unwrap();
        converter.slice(&object).0.unwrap()
    };
    let (first, second) = (slice(), slice());
    assert!(Arc::ptr_eq(
        &first.endpoints[0].zone_hints,
        &second.endpoints[0].zone_hints
    ));
    assert!(Arc::ptr_eq(
        &first.name.namespace,
        &second.service.namespace
    ));
}
