// SPDX-License-Identifier: Apache-2.0
//! The hosts around a proxy: nodes, a client for each, and the pods, which all nodes share.
//!
//! ```text
//! client 10.255.K.2 -- 10.255.K.1 NODE 172.31.K.1 -- 172.31.K.2 pods (10.128.0.0/10 and 10.192.0.0/11, all of them)
//!                                   NET4.(100+K) -- bridge of the test bed -- API server
//! ```

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::Context as _;

use kpr_testkit::namespace::Namespace;

/// Range of pods and clients.
pub(crate) const CLUSTER_CIDR: &str = "10.128.0.0/9";

/// Last byte of the guest's own address on the bridge. Nodes have 101 and up.
const GUEST: u8 = 99;

/// A node's link to the test bed's bridge, where the API server is.
pub(crate) const UPLINK: &str = "uplink";

/// The backend that plain `iptables` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Backend {
    Legacy,
    Nft,
}

impl Backend {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
        }
    }
}

/// See the module's documentation.
pub(crate) struct World {
    host: Namespace,
    pub(crate) pods: Namespace,
    bridge: String,
    net4: String,
    nodes: AtomicU8,
    /// Links to programs by backend, and the lock file of iptables.
    folder: tempfile::TempDir,
}

/// A node with its client.
pub(crate) struct Node {
    number: u8,
    pub(crate) namespace: Namespace,
    pub(crate) client: Namespace,
}

impl Node {
    pub(crate) fn client_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 255, self.number, 2)
    }
}

impl World {
    /// `uplink`: in a guest, the device that leads to the test bed's bridge.
    pub(crate) fn new(bridge: &str, net4: &str, uplink: Option<&str>) -> anyhow::Result<Self> {
        let host = Namespace::current()?;
        if let Some(uplink) = uplink {
            host.ip(&format!(
                "link add {bridge} type bridge\n\
                 link set {uplink} master {bridge} up\n\
                 address add {net4}.{GUEST}/24 dev {bridge}\n\
                 link set {bridge} up\n"
            ))?;
        }
        let pods = Namespace::new()?;
        // Every pod address answers. So does every Service address, but nothing listens on port 80:
        // what a proxy does not translate is refused.
        pods.ip("link set lo up\n\
             route add local 10.128.0.0/10 dev lo\n\
             route add local 10.192.0.0/11 dev lo\n\
             route add local 10.96.0.0/12 dev lo\n")?;
        let folder = tempfile::tempdir()?;
        for backend in [Backend::Legacy, Backend::Nft] {
            let programs = folder.path().join(backend.as_str());
            std::fs::create_dir(&programs)?;
            for family in ["iptables", "ip6tables"] {
                for what in ["", "-save", "-restore"] {
                    let target = find(&format!("{family}-{}{what}", backend.as_str()))?;
                    std::os::unix::fs::symlink(target, programs.join(format!("{family}{what}")))?;
                }
            }
            for tool in ["ipset", "modprobe", "conntrack", "nft"] {
                // Needed by kube-proxy's IPVS and nftables modes.
                if let Ok(target) = find(tool) {
                    std::os::unix::fs::symlink(target, programs.join(tool))?;
                }
            }
        }
        Ok(Self {
            host,
            pods,
            bridge: bridge.to_owned(),
            net4: net4.to_owned(),
            nodes: AtomicU8::new(0),
            folder,
        })
    }

    /// Environment of a program that is to use this backend only: PATH has nothing but its
    /// iptables, and the lock file is private.
    pub(crate) fn environment(&self, backend: Backend) -> [(&'static str, String); 2] {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        [
            ("PATH", path(backend.as_str())),
            ("XTABLES_LOCKFILE", path("xtables.lock")),
        ]
    }

    /// A new node.
    pub(crate) fn node(&self, name: &str) -> anyhow::Result<Node> {
        let number = self.nodes.fetch_add(1, Ordering::Relaxed) + 1;
        let (namespace, client) = (Namespace::new()?, Namespace::new()?);
        let here = namespace.path();
        let uplink = format!("kpb{}n{number}", std::process::id() % 100_000);
        let make = || {
            self.host.ip(&format!(
                "link add {uplink} type veth peer name {UPLINK} netns {here}\n\
                 link set {uplink} master {} up\n",
                self.bridge
            ))?;
            self.pods.ip(&format!(
                "link add node{number} type veth peer name pods netns {here}\n\
                 address add 172.31.{number}.2/24 dev node{number}\n\
                 link set node{number} up\n\
                 route add 10.255.{number}.0/24 via 172.31.{number}.1\n"
            ))?;
            client.ip(&format!(
                "link add eth0 type veth peer name client netns {here}\n\
                 link set lo up\n\
                 address add 10.255.{number}.2/24 dev eth0\n\
                 link set eth0 up\n\
                 route add default via 10.255.{number}.1\n"
            ))?;
            namespace.ip(&format!(
                "link set lo up\n\
                 address add {}.{}/24 dev {UPLINK}\n\
                 link set {UPLINK} up\n\
                 address add 172.31.{number}.1/24 dev pods\n\
                 link set pods up\n\
                 address add 10.255.{number}.1/24 dev client\n\
                 link set client up\n\
                 route add default via 172.31.{number}.2\n",
                self.net4,
                100 + number
            ))?;
            namespace.sysctl(&[("net/ipv4/ip_forward", "1")])
        };
        make().with_context(|| format!("cannot create node {name}"))?;
        Ok(Node {
            number,
            namespace,
            client,
        })
    }
}

/// Path of a program.
pub(crate) fn find(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").context("no PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|path| path.exists())
        .with_context(|| format!("{program} is not installed"))
}
