// SPDX-License-Identifier: Apache-2.0
//! What is wrong is named and skipped, or the start is refused where nothing can work. Nothing else
//! changes.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::json;

use super::Lab;
use kpr_testkit::manifests::Service;
use kpr_testkit::namespace::command;
use kpr_testkit::proxy::Proxy;
use kpr_testkit::topology::Host;

/// A slice of `good` with an endpoint and a port that cannot be.
const BAD_SLICE: &str = r"
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  namespace: default
  name: bad-slice
  labels: { kubernetes.io/service-name: good }
addressType: IPv4
ports:
- { name: tcp-80, protocol: TCP, port: 70000 }
endpoints:
- addresses: [10.244.1.999]
";

const BAD_PROTOCOL: &str = r"
apiVersion: v1
kind: Service
metadata: { namespace: default, name: bad-protocol }
spec:
  clusterIP: 10.96.0.77
  clusterIPs: [10.96.0.77]
  ports:
  - { name: a, protocol: QUIC, port: 443 }
";

const UNKNOWN_FIELD: &str = r"
apiVersion: v1
kind: Service
metadata: { namespace: default, name: unknown-field }
spec:
  clusterIP: 10.96.0.78
  clusterIPs: [10.96.0.78]
  colour: green
  ports:
  - { name: tcp-80, protocol: TCP, port: 80 }
";

const BROKEN: &str = "apiVersion: v1\nkind: Service\nmetadata: { name: [\n";

pub(super) fn is_skipped(binary: &Path) -> Result<()> {
    let good = Service::new("good", 1, &[Host::Web1, Host::Web3]).exposed();
    let lab = Lab::new(binary, std::slice::from_ref(&good), &[])?;
    let proxy = lab.start()?;
    lab.settles_at(std::slice::from_ref(&good), "rr")?;

    lab.manifests.write("bad-slice.yaml", BAD_SLICE)?;
    proxy.wait_for_log(&["default/bad-slice", "ports[0].port", "70000"])?;
    proxy.wait_for_log(&["default/bad-slice", "endpoints[0]", "10.244.1.999"])?;
    lab.settles_at(std::slice::from_ref(&good), "rr")?;

    lab.manifests.write("bad-protocol.yaml", BAD_PROTOCOL)?;
    proxy.wait_for_log(&["default/bad-protocol", "protocol", "QUIC"])?;
    lab.settles_at(std::slice::from_ref(&good), "rr")?;

    lab.manifests.write("broken.yaml", BROKEN)?;
    proxy.wait_for_log(&["broken.yaml", "line"])?;
    lab.settles_at(std::slice::from_ref(&good), "rr")?;

    // A field that nobody knows is named; the Service counts nevertheless.
    lab.manifests.write("unknown-field.yaml", UNKNOWN_FIELD)?;
    proxy.wait_for_log(&["default/unknown-field", "colour"])?;
    lab.manifests.remove("unknown-field.yaml")?;
    lab.settles_at(std::slice::from_ref(&good), "rr")?;

    // A node port that is taken: who had it first keeps it.
    let mut thief = Service::new("thief", 2, &[Host::Web2]);
    thief
        .ports
        .iter_mut()
        .for_each(|port| port.node_port = Some(30_001));
    let mut manifest = thief.service_manifest();
    manifest["metadata"]["creationTimestamp"] = json!("2026-01-02T03:04:05Z");
    lab.manifests.write("thief.json", &manifest.to_string())?;
    proxy.wait_for_log(&["default/thief", "30001"])?;
    thief
        .ports
        .iter_mut()
        .for_each(|port| port.node_port = None);
    thief.endpoints.clear();
    lab.settles_at(&[good.clone(), thief], "rr")?;
    lab.manifests.remove("thief.json")?;
    lab.settles_at(std::slice::from_ref(&good), "rr")
}

/// A scheduler that the kernel lacks refuses the start and names the module.
pub(super) fn scheduler(binary: &Path) -> Result<()> {
    let good = Service::new("good", 1, &[Host::Web1]);
    let lab = Lab::new(binary, &[good], &["--ipvs-scheduler=twos"])?;
    let (status, log) = Proxy::spawn(lab.node(), lab.invocation.command())?.wait()?;
    ensure!(!status.success(), "it ended with {status}:\n{log}");
    ensure!(
        log.contains("ip_vs_twos"),
        "the log does not name the module:\n{log}"
    );
    lab.is_untouched()
}

/// Without `NET_ADMIN` the start is refused, and the capability is named.
pub(super) fn capability(binary: &Path) -> Result<()> {
    let good = Service::new("good", 1, &[Host::Web1]);
    let lab = Lab::new(binary, &[good], &[])?;
    let whole = lab.invocation.command();
    let mut without = command("setpriv");
    without
        .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"])
        .arg(whole.get_program())
        .args(whole.get_args());
    let (status, log) = Proxy::spawn(lab.node(), without)?.wait()?;
    ensure!(!status.success(), "it ended with {status}:\n{log}");
    ensure!(
        log.contains("NET_ADMIN"),
        "the log does not name the capability:\n{log}"
    );
    lab.is_untouched()
}
