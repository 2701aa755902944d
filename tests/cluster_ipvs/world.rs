// SPDX-License-Identifier: Apache-2.0
//! A cluster of one real node: the guest, in which the proxy runs as kube-proxy's user, and the
//! control plane on this machine.

use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;

use crate::oracle::{self, Kernel, Lines};
use crate::wanted::{NODE, wanted};
use kpr_testkit::agent::{ECHO, TALK};
use kpr_testkit::guest::Guest;
use kpr_testkit::testbed::{Testbed, succeeded};
use kpr_testkit::wait::must;

/// Where all objects of these tests are.
pub(crate) const NAMESPACE: &str = "kpr-ipvs";
/// The address of a real pod of the node, which sends back what it gets on port 8080.
pub(crate) const POD: &str = "10.1.0.2";

/// Server and link that somebody else has in the guest's kernel.
const FOREIGN: [&str; 3] = [
    "TCP 203.0.113.99:99 wlc",
    "TCP 203.0.113.99:99 -> 203.0.113.100:99 Masq weight 7",
    "set FOREIGN 203.0.113.99",
];
const SET_UP: &str = "set -e
echo 1 >/proc/sys/net/ipv4/ip_forward
ipvsadm -A -t 203.0.113.99:99 -s wlc
ipvsadm -a -t 203.0.113.99:99 -r 203.0.113.100:99 -m -w 7
ipset create FOREIGN hash:ip
ipset add FOREIGN 203.0.113.99
for name in pod client; do
    ip netns add $name
    ip link add to-$name type veth peer name eth0 netns $name
    ip link set to-$name up
    ip -n $name link set lo up
    ip -n $name link set eth0 up
done
ip address add 10.1.0.1/24 dev to-pod
ip -n pod address add 10.1.0.2/24 dev eth0
ip -n pod route add default via 10.1.0.1
ip address add 192.0.2.1/24 dev to-client
ip -n client address add 192.0.2.2/24 dev eth0
ip -n client route add default via 192.0.2.1
";

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) testbed: Testbed,
    pub(crate) guest: Guest,
    /// The proxy's process inside, if it runs.
    proxy: Option<String>,
    /// The client of [`World::talk`], if there is one.
    talker: Option<String>,
    /// Rules and link, once they are there.
    fixed: Option<String>,
}

impl World {
    pub(crate) fn start(directory: &Path) -> Result<Self, String> {
        let testbed = Testbed::open(directory)?;
        let guest = Guest::start(&testbed);
        let mut world = Self {
            testbed,
            guest,
            proxy: None,
            talker: None,
            fixed: None,
        };
        world.guest.run(SET_UP);
        let own = std::env::current_exe().unwrap();
        let own = own.display();
        world.guest.run(&format!(
            "ip netns exec pod {own} {ECHO} 0.0.0.0:8080 >/run/echo.log 2>&1 &"
        ));
        world.make_nodes();
        Ok(world)
    }

    /// Our node and another one, in two zones.
    fn make_nodes(&self) {
        for (node, zone) in [(NODE, "a"), ("kpr-far", "b")] {
            self.testbed.apply(&format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: {node}, labels: {{topology.kubernetes.io/zone: {zone}}}}}"
            ));
        }
        let addresses = self.guest.addresses.iter();
        let addresses = addresses.map(|a| format!(r#"{{"type": "InternalIP", "address": "{a}"}}"#));
        let addresses = addresses.collect::<Vec<_>>().join(", ");
        self.patch_status(
            "",
            &format!("node/{NODE}"),
            &format!(r#"{{"addresses": [{addresses}]}}"#),
        );
        self.testbed.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}"
        ));
    }

    // === kubectl ===

    /// kubectl in our namespace.
    pub(crate) fn kubectl(&self, command: &str) -> String {
        let mut arguments = vec!["--namespace", NAMESPACE];
        arguments.extend(command.split_whitespace());
        self.testbed.kubectl(&arguments)
    }

    /// `kubectl create` in our namespace.
    pub(crate) fn create(&self, manifest: &str) {
        let arguments = ["--namespace", NAMESPACE, "create", "-f", "-"];
        succeeded(
            &arguments,
            &self.testbed.kubectl_as("admin", &arguments, manifest),
        );
    }

    /// `kubectl apply` in our namespace.
    pub(crate) fn apply(&self, manifest: &str) {
        let arguments = ["--namespace", NAMESPACE, "apply", "-f", "-"];
        succeeded(
            &arguments,
            &self.testbed.kubectl_as("admin", &arguments, manifest),
        );
    }

    pub(crate) fn patch(&self, object: &str, patch: &str) {
        let arguments = [
            "-n",
            NAMESPACE,
            "patch",
            object,
            "--type=merge",
            "-p",
            patch,
        ];
        self.testbed.kubectl(&arguments);
    }

    /// What a controller or a kubelet would write.
    pub(crate) fn patch_status(&self, namespace: &str, object: &str, status: &str) {
        let patch = format!(r#"{{"status": {status}}}"#);
        self.testbed.kubectl(&[
            "-n",
            namespace,
            "patch",
            object,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ]);
    }

    /// Removes all objects of these tests, but for the nodes, and the connection.
    pub(crate) fn clear(&mut self) {
        // A test that failed may have left it stopped.
        self.testbed.apiserver("start");
        if let Some(process) = self.talker.take() {
            self.guest.run(&format!("kill {process}"));
        }
        self.kubectl(
            "delete deployments,replicasets,pods,services,endpointslices --all --force --grace-period=0 --wait=false",
        );
    }

    pub(crate) fn objects(&self) -> Vec<Value> {
        let text =
            self.testbed
                .kubectl(&["get", "services,endpointslices,nodes", "-A", "-o", "json"]);
        let list: Value = serde_json::from_str(&text).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    /// The cluster IPs of a Service of ours.
    pub(crate) fn cluster_ips(&self, service: &str) -> Vec<IpAddr> {
        let path = format!("get service {service} -o jsonpath={{.spec.clusterIPs[*]}}");
        let text = self.kubectl(&path);
        text.split_whitespace()
            .map(|ip| ip.parse().unwrap())
            .collect()
    }

    // === the proxy ===

    fn flags(&self) -> String {
        let kubeconfig = self.testbed.kubeconfig("proxy");
        format!(
            "--proxy-mode=ipvs --kubeconfig={} --hostname-override={NODE} --cluster-cidr=10.1.0.0/16,fd00:1::/48 --metrics-bind-address=0.0.0.0:10249",
            kubeconfig.display()
        )
    }

    /// Starts the proxy unless it runs.
    pub(crate) fn start_proxy(&mut self) {
        if self.proxy.is_some() {
            return;
        }
        let script = format!(
            "{} {} -v 4 </dev/null >/run/proxy.log 2>&1 & echo $!",
            env!("CARGO_BIN_EXE_kube-proxy-rs"),
            self.flags()
        );
        self.proxy = Some(self.guest.run(&script).trim().to_owned());
    }

    /// Kills the proxy; it cannot do anything more.
    pub(crate) fn kill_proxy(&mut self) {
        let process = self.proxy.take().expect("the proxy runs");
        self.guest.run(&format!("kill -KILL {process}"));
        must("the proxy is gone", || {
            let code = self.guest.answer(&format!("kill -0 {process}")).code;
            if code == Some(0) {
                Err("it is there".into())
            } else {
                Ok(())
            }
        });
    }

    /// What the proxy answers on its metrics port.
    pub(crate) fn ask_proxy(&mut self, path: &str) -> String {
        self.guest.run(&format!(
            "curl -sSf --max-time 20 http://127.0.0.1:10249{path}"
        ))
    }

    pub(crate) fn log(&mut self) -> String {
        self.guest.answer("cat /run/proxy.log").stdout
    }

    /// What `kube-proxy-rs plan` prints in the guest; it must be nothing.
    pub(crate) fn check_plan(&mut self) {
        let script = format!(
            "{} plan {}",
            env!("CARGO_BIN_EXE_kube-proxy-rs"),
            self.flags()
        );
        let answer = self.guest.answer(&script);
        assert_eq!(
            (answer.code, &*answer.stdout),
            (Some(0), ""),
            "{}",
            answer.stderr
        );
    }

    // === the kernel ===

    pub(crate) fn kernel(&mut self) -> Kernel {
        oracle::kernel(&mut self.guest)
    }

    /// Waits until all Services are in the kernel as the objects of the API server want them;
    /// returns that state.
    pub(crate) fn agree(&mut self) -> Lines {
        must("the kernel is as wanted", || {
            let objects = self.objects();
            let Kernel {
                lines,
                node_addresses,
            } = self.kernel();
            let mut wanted = wanted(&objects, &node_addresses);
            wanted.extend(FOREIGN.map(str::to_owned));
            wanted.insert("set FOREIGN".to_owned());
            let missing: Vec<&String> = wanted.difference(&lines).collect();
            let surplus: Vec<&String> = lines.difference(&wanted).collect();
            if missing.is_empty() && surplus.is_empty() {
                return Ok(lines);
            }
            let log = self.log();
            let log: Vec<&str> = log.lines().rev().take(20).collect();
            Err(format!(
                "missing: {missing:#?}\nsurplus: {surplus:#?}\nend of the log, last line first: {log:#?}"
            ))
        })
    }

    /// The same, and the rules are as they always were, and the proxy has nothing to change.
    pub(crate) fn agree_in_everything(&mut self) {
        let lines = self.agree();
        let fixed = must("the rules are there", || {
            let fixed = oracle::fixed(&mut self.guest);
            oracle::check_fixed(&fixed, &lines).map(|()| fixed)
        });
        let first = self.fixed.get_or_insert_with(|| fixed.clone());
        assert_eq!(*first, fixed, "the rules have changed");
        self.check_plan();
    }

    // === a connection ===

    /// Opens a connection from the client to an address, through the node; returns the file with
    /// the number of answers.
    pub(crate) fn talk(&mut self, address: &str) -> String {
        let file = "/run/talk".to_owned();
        let own = std::env::current_exe().unwrap();
        let script = format!(
            "rm -f {file}; ip netns exec client {} {TALK} {address} {file} >/run/talk.log 2>&1 & echo $!",
            own.display()
        );
        self.talker = Some(self.guest.run(&script).trim().to_owned());
        self.answers_go_on(&file);
        file
    }

    /// Waits until more answers come on the connection.
    pub(crate) fn answers_go_on(&mut self, file: &str) {
        let mut first = None;
        must("answers come on the connection", || {
            let text = self.guest.answer(&format!("cat {file}")).stdout;
            if text.is_empty() {
                return Err("none yet".to_owned());
            }
            let count: u64 = text.parse().expect(&text);
            let first = *first.get_or_insert(count);
            if count > first {
                Ok(())
            } else {
                Err(format!("there are {count}"))
            }
        });
    }
}
