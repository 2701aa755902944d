// SPDX-License-Identifier: Apache-2.0
//! EndpointSlices.

use super::*;

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
            zones: Arc::default(),
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
        .map(|endpoint| (endpoint.node_hint, texts_of(&endpoint.zones.hints)))
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
