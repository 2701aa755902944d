// SPDX-License-Identifier: Apache-2.0
//! CNI plugins v1.10.0 as a container runtime runs them: `hack/neighbours/build` builds them, and
//! they connect the pods of a node, publish their ports and open the firewall for them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cases::Dataplane;
use crate::namespace::command;
use crate::topology::{Family, Host, Topology};

/// The programs of a node that other programs call by names which leave the backend open.
#[derive(Debug)]
pub struct Programs {
    folder: TempDir,
}

impl Programs {
    pub fn new(dataplane: Dataplane) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::Builder::new().prefix("kpr-programs-").tempdir()?;
        if let Dataplane::Iptables(backend) = dataplane {
            for name in ["iptables", "ip6tables"] {
                for suffix in ["", "-save", "-restore"] {
                    let file = folder.path().join(format!("{name}{suffix}"));
                    let backend = backend.name();
                    fs::write(
                        &file,
                        format!("#!/bin/sh\nexec {name}-{backend}{suffix} \"$@\"\n"),
                    )?;
                    fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
                }
            }
        }
        Ok(Self { folder })
    }

    /// Where programs are looked for, these first.
    pub fn path(&self) -> Result<String> {
        let rest = std::env::var("PATH").context("no PATH")?;
        Ok(format!("{}:{rest}", self.folder.path().display()))
    }
}

/// A port of the node that leads to one of a pod.
#[derive(Clone, Copy, Debug)]
pub struct HostPort {
    pub port: u16,
    pub target: u16,
}

/// The plugins of one node, and what they know of its pods.
#[derive(Debug)]
pub struct Plugins {
    folder: PathBuf,
    /// Addresses in use.
    state: TempDir,
    path: String,
    portmap: Value,
    bridge: Value,
    /// What was said when a pod was added.
    results: BTreeMap<Host, Value>,
}

impl Plugins {
    /// `portmap` is the configuration of that plugin, `bridge` what is special in that one's.
    pub fn new(programs: &Programs, portmap: Value, bridge: Value) -> Result<Self> {
        let built = command(crate::repository().join("hack/neighbours/build"))
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(built.status.success(), "hack/neighbours/build failed");
        Ok(Self {
            folder: PathBuf::from(String::from_utf8(built.stdout)?.trim()),
            state: tempfile::Builder::new().prefix("kpr-cni-").tempdir()?,
            path: programs.path()?,
            portmap,
            bridge,
            results: BTreeMap::new(),
        })
    }

    /// Connects a pod of the node, whose own link goes.
    pub fn add(&mut self, topology: &Topology, pod: Host, ports: &[HostPort]) -> Result<()> {
        let node = topology.host(Host::Node);
        // The first time it is that of the topology.
        drop(node.ip(&format!("link delete {pod}\n")));
        let mut previous = None;
        for plugin in self.chain(pod, ports) {
            let said = self.run(topology, pod, "ADD", &plugin, previous.as_ref())?;
            previous = Some(serde_json::from_str(&said).with_context(|| said.clone())?);
        }
        self.results.insert(pod, previous.context("no plugin")?);
        Ok(())
    }

    /// Takes a pod off the node.
    pub fn delete(&mut self, topology: &Topology, pod: Host, ports: &[HostPort]) -> Result<()> {
        let previous = self.results.remove(&pod);
        for plugin in self.chain(pod, ports).iter().rev() {
            self.run(topology, pod, "DEL", plugin, previous.as_ref())?;
        }
        Ok(())
    }

    /// The pod is connected as it was when it was added, in the plugins' own words.
    pub fn check(&self, topology: &Topology, pod: Host, ports: &[HostPort]) -> Result<()> {
        let previous = self.results.get(&pod);
        for plugin in self.chain(pod, ports) {
            self.run(topology, pod, "CHECK", &plugin, previous)?;
        }
        Ok(())
    }

    /// The configuration of each plugin.
    fn chain(&self, pod: Host, ports: &[HostPort]) -> [Value; 3] {
        let addresses = Family::ALL.map(|family| pod.address(family).to_string());
        let subnets = ["10.244.1.0/24", "fd00:244:1::/64"].map(|net| json!([{ "subnet": net }]));
        let mut bridge = json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
            "hairpinMode": true,
            "args": { "cni": { "ips": addresses } },
            "ipam": {
                "type": "host-local",
                "dataDir": self.state.path(),
                "ranges": subnets,
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
        });
        for (field, value) in self.bridge.as_object().into_iter().flatten() {
            bridge[field] = value.clone();
        }
        let mappings: Vec<Value> = ports
            .iter()
            .flat_map(|port| {
                ["tcp", "udp"].map(|protocol| {
                    json!({
                        "hostPort": port.port, "containerPort": port.target, "protocol": protocol,
                    })
                })
            })
            .collect();
        let mut portmap = self.portmap.clone();
        portmap["type"] = json!("portmap");
        portmap["runtimeConfig"] = json!({ "portMappings": mappings });
        [bridge, portmap, json!({ "type": "firewall" })]
    }

    fn run(
        &self,
        topology: &Topology,
        pod: Host,
        verb: &str,
        plugin: &Value,
        previous: Option<&Value>,
    ) -> Result<String> {
        let mut plugin = plugin.clone();
        plugin["cniVersion"] = json!("1.0.0");
        plugin["name"] = json!("kpr");
        if let Some(previous) = previous {
            plugin["prevResult"] = previous.clone();
        }
        let name = plugin["type"].as_str().context("a plugin without type")?;
        let mut child = command(self.folder.join(name));
        child
            .env("PATH", &self.path)
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("kpr-{pod}"))
            .env("CNI_NETNS", topology.host(pod).path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let node = topology.host(Host::Node);
        let mut child = node
            .enter(|| child.spawn())?
            .with_context(|| format!("cannot run {name}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(plugin.to_string().as_bytes())?;
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "{name} {verb} {pod}: {}: {said}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(said)
    }
}
