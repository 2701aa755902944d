// SPDX-License-Identifier: Apache-2.0
//! Our own Node, ServiceCIDRs, and names that are kept once.

use super::*;

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
            "endpoints": [{"addresses": ["10.0.0.1"], "zone": "b", "hints": {"forZones": [{"name": "a"}]}}],
        });
        let object = serde_json::from_value(object).unwrap();
        converter.slice(&object).0.unwrap()
    };
    let (first, second) = (slice(), slice());
    assert!(Arc::ptr_eq(
        &first.endpoints[0].zones,
        &second.endpoints[0].zones
    ));
    assert_eq!(first.endpoints[0].zones.zone.as_deref(), Some("b"));
    assert!(Arc::ptr_eq(
        &first.name.namespace,
        &second.service.namespace
    ));
}
