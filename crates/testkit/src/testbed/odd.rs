// SPDX-License-Identifier: Apache-2.0
//! Objects as odd as the API server takes them, in fields that a proxy has no use for.

use serde_json::{Map, Value, json};

use super::{Testbed, succeeded};

/// The last second that the API knows. Libraries that count in UTC offsets cannot hold it.
const END_OF_TIME: &str = "9999-12-31T23:59:59Z";

/// With their values just below what all annotations of an object may have, 256 KiB.
const ANNOTATIONS: usize = 2_600;

/// Each manager lists all annotations once more: with five of them the object has 1.3 MB, and etcd
/// takes 1.5.
const MANAGERS: usize = 5;

/// What an object has of it at least, in bytes.
const LARGE: usize = 1_200_000;

impl Testbed {
    /// Gives an object the largest metadata that the API server and etcd take, with times at the
    /// end of the calendar. `object`: kind and name, as in `service/web`.
    pub fn make_odd(&self, object: &str) {
        let (resource, name) = object.split_once('/').unwrap();
        let (api_version, kind) = match resource {
            "service" => ("v1", "Service"),
            "endpointslice" => ("discovery.k8s.io/v1", "EndpointSlice"),
            "node" => ("v1", "Node"),
            "servicecidr" => ("networking.k8s.io/v1", "ServiceCIDR"),
            other => panic!("{other}"),
        };
        if matches!(kind, "Service" | "ServiceCIDR") {
            self.patch_status(object, &odd_conditions());
        }
        let annotations: Map<String, Value> = (0..ANNOTATIONS)
            .map(|n| (format!("example.com/{n:0>63}"), json!("odd \n\"\u{1f980}")))
            .collect();
        let namespace = (!matches!(kind, "Node" | "ServiceCIDR")).then_some("default");
        let manifest = json!({
            "apiVersion": api_version, "kind": kind,
            "metadata": { "name": name, "namespace": namespace, "annotations": annotations },
        });
        for manager in 0..MANAGERS {
            let manager = format!("--field-manager=odd-{manager}");
            let arguments = [
                "apply",
                "--server-side",
                "--force-conflicts",
                &manager,
                "-f",
                "-",
            ];
            let output = self.kubectl_as("admin", &arguments, &manifest.to_string());
            succeeded(&arguments, &output);
        }
        let get = ["get", object, "-o", "json", "--show-managed-fields"];
        let mut found: Value = serde_json::from_str(&self.kubectl(&get)).unwrap();
        let entries = found["metadata"]["managedFields"].as_array_mut().unwrap();
        for entry in entries {
            entry["time"] = json!(END_OF_TIME);
        }
        let replace = ["replace", "-f", "-"];
        succeeded(
            &replace,
            &self.kubectl_as("admin", &replace, &found.to_string()),
        );
        let text = self.kubectl(&get);
        let length = text.replace([' ', '\n'], "").len();
        assert!(length > LARGE, "{object} has {length} bytes");
        assert!(text.contains(END_OF_TIME), "{object} has another time");
    }

    /// Merges something into the status of an object.
    pub fn patch_status(&self, object: &str, status: &Value) {
        let status = json!({ "status": status }).to_string();
        self.kubectl(&[
            "patch",
            object,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ]);
    }
}

/// A Node with a time that the proxy has no use for.
pub fn odd_node(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n\
         spec: {{taints: [{{key: a, effect: NoSchedule, timeAdded: '{END_OF_TIME}'}}]}}\n"
    )
}

/// The status of a Node with an address, as odd as the API server takes it otherwise.
pub fn odd_node_status(address: &str) -> Value {
    json!({
        "phase": "Odd",
        "capacity": { "cpu": "1e18", "example.com/a": "900P", "memory": "1n" },
        "allocatable": { "example.com/a": "8E" },
        "addresses": [
            { "type": "Odd", "address": "no address" },
            { "type": "InternalIP", "address": address },
        ],
        "conditions": [{
            "type": "Odd", "status": "Unknown",
            "lastHeartbeatTime": END_OF_TIME, "lastTransitionTime": "0001-01-01T00:00:01Z",
        }],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": i32::MIN } },
        "images": [{ "names": ["x".repeat(1_000)], "sizeBytes": i64::MIN }],
    })
}

/// The conditions of a Service or a range of cluster IPs.
fn odd_conditions() -> Value {
    json!({ "conditions": [{
        "type": "A", "status": "True", "reason": "R", "message": "x".repeat(30_000),
        "lastTransitionTime": END_OF_TIME, "observedGeneration": i64::MAX,
    }]})
}
