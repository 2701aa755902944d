// SPDX-License-Identifier: Apache-2.0
//! Objects in the API server's protobuf, made of their JSON, with all fields that the server
//! writes: empty texts and zeros where its types are no pointers. The tables follow
//! `generated.proto` of k8s.io/api and k8s.io/apimachinery v0.37.2; the cluster tier compares with
//! a real server.

use k8s_openapi::jiff::civil::DateTime;
use serde_json::Value;

/// What a field holds. In JSON an array is the same field several times.
#[derive(Clone, Copy, Debug)]
enum Type {
    Text,
    Number,
    Truth,
    Time,
    /// A map from texts to texts.
    Map,
    /// A map from texts to quantities.
    Quantities,
    IntOrString,
    /// Any JSON (`fieldsV1`).
    Raw,
    Message(Fields),
}
use Type::{IntOrString, Map, Message, Number, Quantities, Raw, Text, Time, Truth};

/// Name in JSON, number, type, and whether it is written when it is absent.
type Fields = &'static [(&'static str, u32, Type, bool)];

const ALWAYS: bool = true;
const IF_GIVEN: bool = false;

const METADATA: (&str, u32, Type, bool) = ("metadata", 1, Message(OBJECT_META), ALWAYS);

const OBJECT_META: Fields = &[
    ("name", 1, Text, ALWAYS),
    ("generateName", 2, Text, ALWAYS),
    ("namespace", 3, Text, ALWAYS),
    ("selfLink", 4, Text, ALWAYS),
    ("uid", 5, Text, ALWAYS),
    ("resourceVersion", 6, Text, ALWAYS),
    ("generation", 7, Number, ALWAYS),
    ("creationTimestamp", 8, Time, ALWAYS),
    ("deletionTimestamp", 9, Time, IF_GIVEN),
    ("deletionGracePeriodSeconds", 10, Number, IF_GIVEN),
    ("labels", 11, Map, IF_GIVEN),
    ("annotations", 12, Map, IF_GIVEN),
    ("ownerReferences", 13, Message(OWNER), IF_GIVEN),
    ("finalizers", 14, Text, IF_GIVEN),
    ("managedFields", 17, Message(MANAGED), IF_GIVEN),
];

const OWNER: Fields = &[
    ("kind", 1, Text, ALWAYS),
    ("name", 3, Text, ALWAYS),
    ("uid", 4, Text, ALWAYS),
    ("apiVersion", 5, Text, ALWAYS),
    ("controller", 6, Truth, IF_GIVEN),
    ("blockOwnerDeletion", 7, Truth, IF_GIVEN),
];

const MANAGED: Fields = &[
    ("manager", 1, Text, ALWAYS),
    ("operation", 2, Text, ALWAYS),
    ("apiVersion", 3, Text, ALWAYS),
    ("time", 4, Time, IF_GIVEN),
    ("fieldsType", 6, Text, ALWAYS),
    ("fieldsV1", 7, Raw, IF_GIVEN),
    ("subresource", 8, Text, ALWAYS),
];

const CONDITION: Fields = &[
    ("type", 1, Text, ALWAYS),
    ("status", 2, Text, ALWAYS),
    ("observedGeneration", 3, Number, ALWAYS),
    ("lastTransitionTime", 4, Time, ALWAYS),
    ("reason", 5, Text, ALWAYS),
    ("message", 6, Text, ALWAYS),
];

const SERVICE: Fields = &[
    METADATA,
    ("spec", 2, Message(SERVICE_SPEC), ALWAYS),
    ("status", 3, Message(SERVICE_STATUS), ALWAYS),
];

const SERVICE_SPEC: Fields = &[
    ("ports", 1, Message(SERVICE_PORT), IF_GIVEN),
    ("selector", 2, Map, IF_GIVEN),
    ("clusterIP", 3, Text, ALWAYS),
    ("type", 4, Text, ALWAYS),
    ("externalIPs", 5, Text, IF_GIVEN),
    ("sessionAffinity", 7, Text, ALWAYS),
    ("loadBalancerIP", 8, Text, ALWAYS),
    ("loadBalancerSourceRanges", 9, Text, IF_GIVEN),
    ("externalName", 10, Text, ALWAYS),
    ("externalTrafficPolicy", 11, Text, ALWAYS),
    ("healthCheckNodePort", 12, Number, ALWAYS),
    ("publishNotReadyAddresses", 13, Truth, ALWAYS),
    ("sessionAffinityConfig", 14, Message(AFFINITY), IF_GIVEN),
    ("ipFamilyPolicy", 17, Text, IF_GIVEN),
    ("clusterIPs", 18, Text, IF_GIVEN),
    ("ipFamilies", 19, Text, IF_GIVEN),
    ("allocateLoadBalancerNodePorts", 20, Truth, IF_GIVEN),
    ("loadBalancerClass", 21, Text, IF_GIVEN),
    ("internalTrafficPolicy", 22, Text, IF_GIVEN),
    ("trafficDistribution", 23, Text, IF_GIVEN),
];

const SERVICE_PORT: Fields = &[
    ("name", 1, Text, ALWAYS),
    ("protocol", 2, Text, ALWAYS),
    ("port", 3, Number, ALWAYS),
    ("targetPort", 4, IntOrString, ALWAYS),
    ("nodePort", 5, Number, ALWAYS),
    ("appProtocol", 6, Text, IF_GIVEN),
];

const AFFINITY: Fields = &[(
    "clientIP",
    1,
    Message(&[("timeoutSeconds", 1, Number, IF_GIVEN)]),
    IF_GIVEN,
)];

const SERVICE_STATUS: Fields = &[
    (
        "loadBalancer",
        1,
        Message(&[("ingress", 1, Message(INGRESS), IF_GIVEN)]),
        ALWAYS,
    ),
    ("conditions", 2, Message(CONDITION), IF_GIVEN),
];

const INGRESS: Fields = &[
    ("ip", 1, Text, ALWAYS),
    ("hostname", 2, Text, ALWAYS),
    ("ipMode", 3, Text, IF_GIVEN),
];

const ENDPOINT_SLICE: Fields = &[
    METADATA,
    ("endpoints", 2, Message(ENDPOINT), IF_GIVEN),
    ("ports", 3, Message(ENDPOINT_PORT), IF_GIVEN),
    ("addressType", 4, Text, ALWAYS),
];

const ENDPOINT: Fields = &[
    ("addresses", 1, Text, IF_GIVEN),
    ("conditions", 2, Message(ENDPOINT_CONDITIONS), ALWAYS),
    ("hostname", 3, Text, IF_GIVEN),
    ("targetRef", 4, Message(REFERENCE), IF_GIVEN),
    ("deprecatedTopology", 5, Map, IF_GIVEN),
    ("nodeName", 6, Text, IF_GIVEN),
    ("zone", 7, Text, IF_GIVEN),
    ("hints", 8, Message(HINTS), IF_GIVEN),
];

const ENDPOINT_CONDITIONS: Fields = &[
    ("ready", 1, Truth, IF_GIVEN),
    ("serving", 2, Truth, IF_GIVEN),
    ("terminating", 3, Truth, IF_GIVEN),
];

const REFERENCE: Fields = &[
    ("kind", 1, Text, ALWAYS),
    ("namespace", 2, Text, ALWAYS),
    ("name", 3, Text, ALWAYS),
    ("uid", 4, Text, ALWAYS),
    ("apiVersion", 5, Text, ALWAYS),
    ("resourceVersion", 6, Text, ALWAYS),
    ("fieldPath", 7, Text, ALWAYS),
];

const NAME: Fields = &[("name", 1, Text, ALWAYS)];

const HINTS: Fields = &[
    ("forZones", 1, Message(NAME), IF_GIVEN),
    ("forNodes", 2, Message(NAME), IF_GIVEN),
];

const ENDPOINT_PORT: Fields = &[
    ("name", 1, Text, IF_GIVEN),
    ("protocol", 2, Text, IF_GIVEN),
    ("port", 3, Number, IF_GIVEN),
    ("appProtocol", 4, Text, IF_GIVEN),
];

const NODE: Fields = &[
    METADATA,
    ("spec", 2, Message(NODE_SPEC), ALWAYS),
    ("status", 3, Message(NODE_STATUS), ALWAYS),
];

const NODE_SPEC: Fields = &[
    ("podCIDR", 1, Text, ALWAYS),
    ("externalID", 2, Text, ALWAYS),
    ("providerID", 3, Text, ALWAYS),
    ("unschedulable", 4, Truth, ALWAYS),
    ("taints", 5, Message(TAINT), IF_GIVEN),
    ("podCIDRs", 7, Text, IF_GIVEN),
];

const TAINT: Fields = &[
    ("key", 1, Text, ALWAYS),
    ("value", 2, Text, ALWAYS),
    ("effect", 3, Text, ALWAYS),
    ("timeAdded", 4, Time, IF_GIVEN),
];

const NODE_STATUS: Fields = &[
    ("capacity", 1, Quantities, IF_GIVEN),
    ("allocatable", 2, Quantities, IF_GIVEN),
    ("phase", 3, Text, ALWAYS),
    ("conditions", 4, Message(NODE_CONDITION), IF_GIVEN),
    (
        "addresses",
        5,
        Message(&[("type", 1, Text, ALWAYS), ("address", 2, Text, ALWAYS)]),
        IF_GIVEN,
    ),
];

const NODE_CONDITION: Fields = &[
    ("type", 1, Text, ALWAYS),
    ("status", 2, Text, ALWAYS),
    ("lastHeartbeatTime", 3, Time, ALWAYS),
    ("lastTransitionTime", 4, Time, ALWAYS),
    ("reason", 5, Text, ALWAYS),
    ("message", 6, Text, ALWAYS),
];

const SERVICE_CIDR: Fields = &[
    METADATA,
    ("spec", 2, Message(&[("cidrs", 1, Text, IF_GIVEN)]), ALWAYS),
    (
        "status",
        3,
        Message(&[("conditions", 1, Message(CONDITION), IF_GIVEN)]),
        ALWAYS,
    ),
];

const LIST_META: Fields = &[
    ("selfLink", 1, Text, ALWAYS),
    ("resourceVersion", 2, Text, ALWAYS),
    ("continue", 3, Text, ALWAYS),
    ("remainingItemCount", 4, Number, IF_GIVEN),
];

const STATUS: Fields = &[
    ("metadata", 1, Message(LIST_META), ALWAYS),
    ("status", 2, Text, ALWAYS),
    ("message", 3, Text, ALWAYS),
    ("reason", 4, Text, ALWAYS),
    ("code", 6, Number, ALWAYS),
];

/// The message of an object or list, without an envelope, by the kind that it names.
pub fn bare(object: &Value) -> Vec<u8> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let fields = match kind {
        "Service" => SERVICE,
        "EndpointSlice" => ENDPOINT_SLICE,
        "Node" => NODE,
        "ServiceCIDR" => SERVICE_CIDR,
        "Status" => STATUS,
        // A bookmark's object need be nothing else.
        "" => &[METADATA],
        _ => return list(kind, object),
    };
    message(fields, object)
}

fn list(kind: &str, object: &Value) -> Vec<u8> {
    let kind = kind.strip_suffix("List").expect("a kind that is known");
    let mut bytes = field(1, &message(LIST_META, &object["metadata"]));
    for item in object["items"].as_array().into_iter().flatten() {
        // Items do not name their kind.
        let mut item = item.clone();
        item["kind"] = kind.into();
        bytes.extend(field(2, &bare(&item)));
    }
    bytes
}

/// An object or list as the server answers with it.
pub fn wrapped(object: &Value) -> Vec<u8> {
    let text = |name: &str| object[name].as_str().unwrap_or_default();
    envelope(text("apiVersion"), text("kind"), &bare(object))
}

/// An envelope around a message.
pub fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let kind = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    [
        b"k8s\0".to_vec(),
        field(1, &kind),
        field(2, message),
        field(3, b""),
        field(4, b""),
    ]
    .concat()
}

/// An event of a watch (`{"type": ..., "object": ...}`) with its length before it.
pub fn event(event: &Value) -> Vec<u8> {
    let kind = event["type"].as_str().expect("a type");
    event_with(kind, &wrapped(&event["object"]))
}

/// The same with an object that is bytes.
pub fn event_with(kind: &str, object: &[u8]) -> Vec<u8> {
    frame(&[field(1, kind.as_bytes()), field(2, &field(1, object))].concat())
}

/// Bytes with their length before them.
pub fn frame(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("short");
    [&length.to_be_bytes(), bytes].concat()
}

/// A field that holds bytes.
pub fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut all = varint(u64::from(number) << 3 | 2);
    all.extend(varint(bytes.len() as u64));
    all.extend_from_slice(bytes);
    all
}

/// A field that holds a number.
pub fn number(number: u32, value: i64) -> Vec<u8> {
    let mut all = varint(u64::from(number) << 3);
    all.extend(varint(value.cast_unsigned()));
    all
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

fn message(fields: Fields, object: &Value) -> Vec<u8> {
    for name in object.as_object().into_iter().flat_map(|all| all.keys()) {
        let is_type = ["kind", "apiVersion"].contains(&name.as_str());
        let is_known = is_type || fields.iter().any(|(known, ..)| known == name);
        assert!(is_known, "no field {name} of {object}");
    }
    let mut bytes = Vec::new();
    for (name, number, type_, always) in fields {
        match &object[*name] {
            Value::Null if *always => bytes.extend(value(*number, *type_, &Value::Null)),
            Value::Null => {}
            Value::Array(items) => {
                for item in items {
                    bytes.extend(value(*number, *type_, item));
                }
            }
            one => bytes.extend(value(*number, *type_, one)),
        }
    }
    bytes
}

fn value(key: u32, type_: Type, json: &Value) -> Vec<u8> {
    match type_ {
        Text => field(key, text(json).as_bytes()),
        Number => number(key, json.as_i64().unwrap_or_default()),
        Truth => number(key, i64::from(json.as_bool().unwrap_or_default())),
        Time => field(key, &time(json)),
        Raw => field(key, &field(1, json.to_string().as_bytes())),
        Message(fields) => field(key, &message(fields, json)),
        IntOrString => {
            let is_text = i64::from(json.is_string());
            let number_of = number(2, json.as_i64().unwrap_or_default());
            let parts = [
                number(1, is_text),
                number_of,
                field(3, text(json).as_bytes()),
            ];
            field(key, &parts.concat())
        }
        Map | Quantities => {
            let entries = json.as_object().expect("a map").iter();
            let entry = |(name, json): (&String, &Value)| {
                let value = text(json).as_bytes();
                let value = match type_ {
                    Map => field(2, value),
                    _ => field(2, &field(1, value)),
                };
                field(key, &[field(1, name.as_bytes()), value].concat())
            };
            entries.flat_map(entry).collect()
        }
    }
}

fn text(json: &Value) -> &str {
    assert!(!json.is_object() && !json.is_array(), "no text: {json}");
    json.as_str().unwrap_or_default()
}

/// Seconds and nanoseconds; nothing for no time.
fn time(json: &Value) -> Vec<u8> {
    let Some(text) = json.as_str() else {
        return Vec::new();
    };
    let time: DateTime = text.trim_end_matches('Z').parse().expect("a time");
    let begin = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
    let seconds = time.duration_since(begin).as_secs();
    [number(1, seconds), number(2, 0)].concat()
}
