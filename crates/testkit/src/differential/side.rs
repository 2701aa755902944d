// SPDX-License-Identifier: Apache-2.0
//! One of the two nodes: a small cluster of its own, with the same addresses as the other's, and a
//! proxy. Both proxies read the same API server, as the same node.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use super::api::Mark;
use crate::namespace::{Namespace, Uplink, command};
use crate::proxy::Proxy;
use crate::testbed::Testbed;
use crate::topology::{CLUSTER_CIDRS, Family, Host, Topology};
use crate::traffic::{Outcome, Patience, Protocol, Servers, ask};
use crate::wait;

/// A program and its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contestant {
    pub is_ours: bool,
    pub mode: &'static str,
}

impl Contestant {
    pub fn name(self) -> String {
        let program = if self.is_ours {
            "kube-proxy-rs"
        } else {
            "kube-proxy"
        };
        format!("{program}, {} mode", self.mode)
    }

    fn binary(self, ours: &Path, testbed: &Testbed) -> Result<PathBuf> {
        if self.is_ours {
            return Ok(ours.to_owned());
        }
        let built = Path::new(testbed.env("BIN")).join("kube-proxy");
        ensure!(built.exists(), "build it: hack/testbed/build kube-proxy");
        Ok(built)
    }
}

/// The bridge by which nodes reach the API server.
#[derive(Debug)]
pub struct Bridge(String);

impl Bridge {
    /// The test bed's own; in a guest one with the link to it.
    pub fn new(testbed: &Testbed) -> Result<Self> {
        let name = testbed.env("BRIDGE");
        if Path::new("/sys/class/net").join(name).exists() {
            return Ok(Self(name.to_owned()));
        }
        let here = Namespace::current()?;
        let name = "kprdiff";
        if Path::new("/sys/class/net").join(name).exists() {
            return Ok(Self(name.to_owned()));
        }
        let shown = here.run(
            "ip",
            &["-o", "address", "show", "dev", "vec0", "scope", "global"],
        )?;
        let addresses = shown
            .lines()
            .filter_map(|line| line.split_whitespace().nth(3));
        let mut moved = String::new();
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            writeln!(moved, "address del {address} dev vec0")?;
            writeln!(moved, "address add {address} dev {name} {nodad}")?;
        }
        ensure!(!moved.is_empty(), "the guest has no way to the API server");
        here.ip(&format!(
            "link add {name} type bridge\nlink set vec0 master {name}\nlink set {name} up\n{moved}"
        ))?;
        Ok(Self(name.to_owned()))
    }
}

#[derive(Debug)]
pub struct Side {
    pub contestant: Contestant,
    // Ends before the namespaces do.
    proxy: Proxy,
    _servers: Servers,
    pub topology: Topology,
    _uplink: Uplink,
}

impl Side {
    /// Starts it. `number` tells the two apart.
    pub fn new(
        contestant: Contestant,
        ours: &Path,
        number: u8,
        bridge: &Bridge,
        testbed: &Testbed,
    ) -> Result<Self> {
        let topology = Topology::new()?;
        let servers = Servers::new(&topology)?;
        add_sources(&topology)?;
        let node = topology.host(Host::Node);
        let uplink = Uplink::new(node, "api0", &bridge.0)?;
        let address = 251 + number;
        node.ip(&format!(
            "address add {}.{address}/24 dev api0\n",
            testbed.env("NET4")
        ))?;
        let mut command = command(contestant.binary(ours, testbed)?);
        command
            .arg(format!("--kubeconfig={}", testbed.kubeconfig("proxy").display()))
            .arg(format!("--proxy-mode={}", contestant.mode))
            .arg(format!("--cluster-cidr={CLUSTER_CIDRS}"))
            .args(["--hostname-override=node", "--v=2"])
            // Nobody waits for the sake of others here.
            .args(["--iptables-min-sync-period=10ms", "--ipvs-min-sync-period=10ms"])
            // Not for a network namespace to change.
            .args(["--conntrack-max-per-core=0", "--conntrack-min=0"])
            // kube-proxy ends where the kernel has no such settings before it has a rule.
            .args(["--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s"]);
        let proxy = Proxy::spawn(node, command)?;
        Ok(Self {
            contestant,
            proxy,
            _servers: servers,
            topology,
            _uplink: uplink,
        })
    }

    /// Waits until the proxy has done what was written before the mark.
    pub fn reaches(&self, mark: Mark) -> Result<()> {
        let what = format!("{} has caught up", self.contestant.name());
        let from = self.topology.host(Host::Node);
        // kube-proxy's first round takes a minute in the guest.
        wait::until_within(4 * wait::LIMIT, &what, || {
            for family in Family::ALL {
                let to = mark.address(family);
                match ask(from, None, to, Protocol::Tcp, Patience::Glance)? {
                    Outcome::Answered(answer) if answer.port == mark.target() => {}
                    other => bail!("the mark at {to} was {other}"),
                }
            }
            Ok(())
        })
        .with_context(|| self.log())
    }

    /// The end of the proxy's log.
    pub fn log(&self) -> String {
        let log = self.proxy.log();
        let lines: Vec<&str> = log.lines().rev().take(20).collect();
        let lines = lines.into_iter().rev().map(|line| {
            let end = line
                .char_indices()
                .nth(400)
                .map_or(line.len(), |(at, _)| at);
            &line[..end]
        });
        let lines: Vec<&str> = lines.collect();
        format!(
            "end of the log of {}:\n{}\n",
            self.contestant.name(),
            lines.join("\n")
        )
    }
}

/// The last number of the first of many addresses of a client, by which it is many clients.
const FIRST_SOURCE: u16 = 110;
pub const SOURCES: u16 = 120;
/// Who has them.
pub const MANY: [Host; 2] = [Host::Client, Host::Shell];

/// One of many addresses of a client.
pub fn source(host: Host, family: Family, index: u16) -> std::net::IpAddr {
    let last = FIRST_SOURCE + index % SOURCES;
    match host.address(family) {
        std::net::IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            [a, b, c, u8::try_from(last).expect("below 256")].into()
        }
        std::net::IpAddr::V6(address) => {
            let mut segments = address.segments();
            segments[7] = 0x1000 + last;
            segments.into()
        }
    }
}

/// Gives them to those hosts.
pub fn add_sources(topology: &Topology) -> Result<()> {
    for host in MANY {
        let commands = (0..SOURCES).flat_map(|index| {
            Family::ALL.map(|family| {
                let (bits, nodad) = match family {
                    Family::V4 => (24, ""),
                    Family::V6 => (64, "nodad preferred_lft 0"),
                };
                format!(
                    "address add {}/{bits} dev eth0 {nodad}\n",
                    source(host, family, index)
                )
            })
        });
        topology.host(host).ip(&commands.collect::<String>())?;
    }
    Ok(())
}
