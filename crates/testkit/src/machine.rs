// SPDX-License-Identifier: Apache-2.0
//! A node: a network namespace with a link to the API server, its Node object, and a proxy that
//! runs there.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::namespace::{Namespace, Uplink, command};
use crate::proxy::Proxy;
use crate::testbed::Testbed;
use crate::wait;

/// The last bytes of the addresses; `hack/testbed/tap` begins below.
const FIRST_HOST: u8 = 240;

/// kube-proxy's files in a private view of the file system, then the proxy in place of the shell.
/// `/var/run` is a link to `/run`.
const AS_IN_A_POD: &str = r#"set -e
files=$1 && shift
mount -t tmpfs kpr /var/lib
mkdir /var/lib/kube-proxy
cp "$files/config.conf" "$files/kubeconfig.conf" /var/lib/kube-proxy/
mount -t tmpfs kpr /run
mkdir -p /run/secrets/kubernetes.io/serviceaccount
cp "$files/token" "$files/ca.crt" /run/secrets/kubernetes.io/serviceaccount/
exec "$@""#;

/// What kubeadm puts into the ConfigMap `kube-proxy`.
const CONFIG: &str = include_str!("../../../src/config/file/kubeadm.yaml");
const KUBECONFIG: &str = "apiVersion: v1
kind: Config
clusters:
- cluster:
    certificate-authority: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
    server: SERVER
  name: default
contexts:
- context:
    cluster: default
    namespace: default
    user: default
  name: default
current-context: default
users:
- name: default
  user:
    tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token
";

/// A node. Its Node object is deleted with it.
pub struct Machine<'a> {
    testbed: &'a Testbed,
    pub name: &'static str,
    pub namespace: Namespace,
    /// Its address on the link.
    pub address: String,
    files: TempDir,
    _uplink: Uplink,
}

impl<'a> Machine<'a> {
    /// `number` tells those of one test apart.
    pub fn new(testbed: &'a Testbed, name: &'static str, number: u8) -> Result<Self> {
        let namespace = Namespace::new()?;
        let net = testbed.env("NET4");
        let address = format!("{net}.{}", FIRST_HOST + number);
        let uplink = Uplink::new(&namespace, "eth0", testbed.env("BRIDGE"))?;
        namespace.ip(&format!(
            "link set lo up\naddress add {address}/24 dev eth0\nroute add default via {net}.1\n"
        ))?;
        let files = tempfile::Builder::new().prefix("kpr-pod-").tempdir()?;
        let server = testbed.env("API_SERVER");
        let write = |name: &str, text: &str| fs::write(files.path().join(name), text);
        write("config.conf", CONFIG)?;
        write("kubeconfig.conf", &KUBECONFIG.replace("SERVER", server))?;
        write("token", testbed.env("PROXY_TOKEN"))?;
        let authority = Path::new(testbed.env("KPR_TESTBED")).join("certs/apiserver.crt");
        fs::copy(authority, files.path().join("ca.crt"))?;
        Ok(Self {
            testbed,
            name,
            namespace,
            address,
            files,
            _uplink: uplink,
        })
    }

    /// Makes the Node object; it has the node's address.
    pub fn register(&self, spec: &str) {
        self.testbed.apply(&format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {}, labels: {{topology.kubernetes.io/zone: a}}}}\nspec: {spec}\n",
            self.name
        ));
        self.set_addresses(&[&self.address]);
    }

    pub fn set_addresses(&self, addresses: &[&str]) {
        self.testbed.set_addresses(self.name, addresses);
    }

    /// Another `config.conf`: kubeadm's with these lines replaced.
    pub fn configure(&self, replace: &[(&str, &str)]) -> Result<()> {
        let mut text = CONFIG.to_owned();
        for (old, new) in replace {
            ensure!(text.contains(old), "{old:?} is not in kubeadm's file");
            text = text.replace(old, new);
        }
        Ok(fs::write(self.files.path().join("config.conf"), text)?)
    }

    /// A program that sees kube-proxy's files, with kubeadm's command line for it.
    pub fn as_kubeadm_does(&self, program: &Path) -> Command {
        let mut command = command("unshare");
        command
            .args([
                "--mount",
                "--propagation=private",
                "sh",
                "-c",
                AS_IN_A_POD,
                "sh",
            ])
            .arg(self.files.path())
            .arg(program)
            .arg("--config=/var/lib/kube-proxy/config.conf")
            .arg(format!("--hostname-override={}", self.name));
        command
    }

    /// Our program with flags, in iptables mode.
    pub fn with_flags(&self, program: &Path, flags: &[&str]) -> Command {
        let mut command = command(program);
        command
            .arg("--proxy-mode=iptables")
            .arg(format!(
                "--kubeconfig={}",
                self.testbed.kubeconfig("proxy").display()
            ))
            .arg(format!("--hostname-override={}", self.name))
            .args(flags);
        command
    }

    pub fn spawn(&self, command: Command) -> Result<Proxy> {
        Proxy::spawn(&self.namespace, command)
    }

    /// `GET` on the node's loopback address: status and body.
    pub fn get(&self, port: u16, path: &str) -> Result<(u16, String)> {
        let (code, _, body) = self.ask(port, path)?;
        Ok((code, body))
    }

    /// Status, headers in lower case, body.
    pub fn ask(&self, port: u16, path: &str) -> Result<(u16, BTreeMap<String, String>, String)> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut stream = self.namespace.enter(|| TcpStream::connect(address))??;
        stream.set_read_timeout(Some(wait::LIMIT))?;
        // HTTP/1.0: nobody answers in chunks.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        let mut lines = head.lines();
        let code = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .context("no status")?
            .parse()?;
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        Ok((code, headers, body.to_owned()))
    }

    /// Waits until `/healthz` answers so.
    pub fn health_becomes(&self, proxy: &Proxy, code: u16) -> Result<String> {
        wait::until(&format!("/healthz answers {code}"), || {
            let (now, body) = self.get(10256, "/healthz")?;
            ensure!(now == code, "it is {now}: {body}");
            Ok(body)
        })
        .with_context(|| format!("the log:\n{}", proxy.log()))
    }

    /// Waits until the `nat` rules are so.
    pub fn rules_become(
        &self,
        proxy: &Proxy,
        what: &str,
        are_so: impl Fn(&str) -> bool,
    ) -> Result<()> {
        wait::until(what, || {
            let rules = self.namespace.run("iptables-save", &["-t", "nat"])?;
            ensure!(are_so(&rules), "{rules}");
            Ok(())
        })
        .with_context(|| format!("the log:\n{}", proxy.log()))
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        let arguments = [
            "delete",
            "--ignore-not-found",
            "--wait=false",
            "node",
            self.name,
        ];
        // The test's own failure is what counts.
        drop(self.testbed.kubectl_as("admin", &arguments, ""));
    }
}
