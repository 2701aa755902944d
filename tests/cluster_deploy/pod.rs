// SPDX-License-Identifier: Apache-2.0
//! A pod of a DaemonSet, run as the kubelet and a container runtime would: the image's file tree as
//! its root, volumes from the API server, a token of its service account, environment,
//! capabilities, read-only mounts, probes.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use kpr_testkit::testbed::{Testbed, program, succeeded};

/// What a runtime sets where the image does not.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Arguments: root, file of mounts (`source target ro|rw`), `privileged` or the capabilities to
/// keep, `ro` or `rw` for the root, then the environment up to `--`, then the command.
const CONTAINER: &str = r#"set -e
root=$1 mounts=$2 rights=$3 mode=$4
shift 4
read_only() { mount -o remount,bind,ro "$1"; }
mount --bind "$root" "$root"
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t sysfs -o ro sysfs "$root/sys"
while read -r source target access; do
    mount --bind "$source" "$root$target"
    [ "$access" = rw ] || read_only "$root$target"
done <"$mounts"
if [ "$mode" = ro ]; then read_only "$root"; fi
variables=
while [ "$1" != -- ]; do variables="$variables $1" && shift; done
program=$2 && shift 2
if [ "$rights" = privileged ]; then
    exec env -i $variables capsh --chroot="$root" --shell="$program" -- "$@"
fi
mount --bind "$root/proc/sys" "$root/proc/sys"
read_only "$root/proc/sys"
others=$(capsh --print | sed -n 's/^Bounding set =//p' | tr , '\n' | grep -vxF "$(echo "$rights" | tr , '\n')" | paste -s -d ,)
exec env -i $variables capsh --chroot="$root" --drop="$others" --no-new-privs --shell="$program" -- "$@""#;

/// The image's file tree, with a program in it.
pub(crate) struct Tree(TempDir);

impl Tree {
    pub(crate) fn assemble(binary: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("kpr-image-").tempdir()?;
        let tree = Self(folder);
        let mut command = program(Path::new(&crate::deploy("image/assemble-tree")));
        let output = command.arg(binary).arg(tree.path()).output()?;
        succeeded(&["assemble-tree"], &output);
        Ok(tree)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("tree")
    }
}

/// A pod on a node that has the name `node`.
pub(crate) struct Pod {
    spec: Value,
    /// With the root of every container, and a folder for every volume.
    files: TempDir,
    config_maps: Vec<(String, Value)>,
}

fn get(testbed: &Testbed, kind: &str, name: &str) -> Result<Value> {
    let arguments = ["get", kind, name, "-n", "kube-system", "-o", "json"];
    Ok(serde_json::from_str(&testbed.kubectl(&arguments))?)
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key]
        .as_str()
        .with_context(|| format!("no {key} in {value}"))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

impl Pod {
    /// Prepares what a DaemonSet asks for.
    pub(crate) fn new(testbed: &Testbed, daemon_set: &str, tree: &Tree) -> Result<Self> {
        let daemon_set = get(testbed, "daemonset", daemon_set)?;
        let spec = daemon_set["spec"]["template"]["spec"].clone();
        ensure!(spec["hostNetwork"] == true, "{spec}");
        let files = tempfile::Builder::new().prefix("kpr-pod-").tempdir()?;
        let root = files.path().join("root");
        let status = program(Path::new("cp"))
            .args(["-a", "--link"])
            .args([tree.path(), root])
            .status()?;
        ensure!(status.success(), "cp: {status}");
        let mut pod = Self {
            spec,
            files,
            config_maps: Vec::new(),
        };
        pod.make_volumes(testbed)?;
        pod.make_token(testbed)?;
        pod.make_mounts()?;
        Ok(pod)
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.files.path().join(format!("volume-{name}"))
    }

    fn make_volumes(&mut self, testbed: &Testbed) -> Result<()> {
        for volume in list(&self.spec["volumes"]) {
            let path = self.volume(text(volume, "name")?);
            if let Some(name) = volume["configMap"]["name"].as_str() {
                fs::create_dir(&path)?;
                let map = get(testbed, "configmap", name)?;
                for (key, value) in map["data"].as_object().context("no data")? {
                    fs::write(path.join(key), value.as_str().unwrap_or_default())?;
                }
            } else if volume["hostPath"]["type"] == "FileOrCreate" {
                fs::write(&path, "")?;
            } else {
                let on_host = text(&volume["hostPath"], "path")?;
                fs::create_dir_all(on_host)?;
                std::os::unix::fs::symlink(on_host, &path)?;
            }
        }
        let containers = list(&self.spec["initContainers"]).chain(list(&self.spec["containers"]));
        for source in containers.flat_map(|container| list(&container["envFrom"])) {
            let name = text(&source["configMapRef"], "name")?;
            let data = get(testbed, "configmap", name)?["data"].clone();
            self.config_maps.push((name.to_owned(), data));
        }
        Ok(())
    }

    fn make_token(&self, testbed: &Testbed) -> Result<()> {
        let account = text(&self.spec, "serviceAccountName")?;
        let token = testbed.kubectl(&["create", "token", account, "-n", "kube-system"]);
        let folder = self.volume("token");
        fs::create_dir(&folder)?;
        fs::write(folder.join("token"), token.trim())?;
        fs::write(folder.join("namespace"), "kube-system")?;
        let authority = Path::new(testbed.env("KPR_TESTBED")).join("certs/apiserver.crt");
        fs::copy(authority, folder.join("ca.crt"))?;
        Ok(())
    }

    /// A file of mounts for each container, and the places in the root where they go.
    fn make_mounts(&self) -> Result<()> {
        for kind in ["initContainers", "containers"] {
            for container in list(&self.spec[kind]) {
                let mut mounts = format!("{} {TOKEN} ro\n", self.volume("token").display());
                self.make_place(&self.volume("token"), TOKEN)?;
                for mount in list(&container["volumeMounts"]) {
                    let source = self.volume(text(mount, "name")?);
                    let target = text(mount, "mountPath")?;
                    let access = if mount["readOnly"] == true {
                        "ro"
                    } else {
                        "rw"
                    };
                    self.make_place(&source, target)?;
                    writeln!(mounts, "{} {target} {access}", source.display())?;
                }
                fs::write(self.mounts(text(container, "name")?), mounts)?;
            }
        }
        Ok(())
    }

    fn mounts(&self, container: &str) -> PathBuf {
        self.files.path().join(format!("mounts-{container}"))
    }

    fn make_place(&self, source: &Path, target: &str) -> Result<()> {
        let place = self
            .files
            .path()
            .join("root")
            .join(target.trim_start_matches('/'));
        if source.is_dir() {
            fs::create_dir_all(place)?;
        } else {
            fs::write(place, "")?;
        }
        Ok(())
    }

    /// The commands of the containers that run before, one after the other.
    pub(crate) fn init(&self) -> Result<Vec<Command>> {
        list(&self.spec["initContainers"])
            .map(|container| self.command(container))
            .collect()
    }

    /// The command of the one container.
    pub(crate) fn main(&self) -> Result<Command> {
        self.command(&self.spec["containers"][0])
    }

    fn command(&self, container: &Value) -> Result<Command> {
        let security = &container["securityContext"];
        let rights = if security["privileged"] == true {
            "privileged".to_owned()
        } else {
            let capabilities = &security["capabilities"];
            ensure!(
                capabilities["drop"] == serde_json::json!(["ALL"]),
                "{security}"
            );
            ensure!(security["allowPrivilegeEscalation"] == false, "{security}");
            let kept = list(&capabilities["add"]).filter_map(Value::as_str);
            let kept = kept.map(|name| format!("cap_{}", name.to_lowercase()));
            kept.collect::<Vec<_>>().join(",")
        };
        let read_only = security["readOnlyRootFilesystem"] == true;
        let mut command = program(Path::new("unshare"));
        command
            .args([
                "--mount",
                "--propagation=private",
                "sh",
                "-c",
                CONTAINER,
                "sh",
            ])
            .arg(self.files.path().join("root"))
            .arg(self.mounts(text(container, "name")?))
            .args([rights.as_str(), if read_only { "ro" } else { "rw" }, PATH])
            .args(self.environment(container)?)
            .arg("--");
        for argument in list(&container["command"]) {
            let argument = argument.as_str().context("no text")?;
            command.arg(argument.replace("$(NODE_NAME)", "node"));
        }
        Ok(command)
    }

    /// What `/proc/PID/status` says of the one container's process where its rights are those that
    /// the manifest gives.
    pub(crate) fn rights(&self) -> Result<Vec<(&'static str, &'static str)>> {
        let security = &self.spec["containers"][0]["securityContext"];
        if security["privileged"] == true {
            return Ok(vec![("NoNewPrivs", "0")]);
        }
        let added = &security["capabilities"]["add"];
        ensure!(
            *added == serde_json::json!(["NET_ADMIN", "NET_RAW"]),
            "{added}"
        );
        // Bits 12 and 13.
        let mask = "0000000000003000";
        Ok(vec![
            ("CapEff", mask),
            ("CapPrm", mask),
            ("CapBnd", mask),
            ("NoNewPrivs", "1"),
        ])
    }

    fn environment(&self, container: &Value) -> Result<Vec<String>> {
        let mut variables = Vec::new();
        for source in list(&container["envFrom"]) {
            let name = text(&source["configMapRef"], "name")?;
            let map = self.config_maps.iter().find(|(known, _)| known == name);
            let (_, data) = map.context("a ConfigMap that was read")?;
            for (key, value) in data.as_object().context("no data")? {
                variables.push(format!("{key}={}", value.as_str().unwrap_or_default()));
            }
        }
        for variable in list(&container["env"]) {
            let name = text(variable, "name")?;
            if let Some(value) = variable["value"].as_str() {
                variables.push(format!("{name}={value}"));
            } else if variable["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName" {
                variables.push(format!("{name}=node"));
            } else {
                bail!("{variable}");
            }
        }
        Ok(variables)
    }

    /// Port and path of a probe, as the kubelet finds them.
    pub(crate) fn probe(&self, kind: &str) -> Result<(u16, String)> {
        let container = &self.spec["containers"][0];
        let get = &container[kind]["httpGet"];
        let port = match &get["port"] {
            Value::String(name) => {
                let mut ports = list(&container["ports"]);
                let port = ports.find(|port| port["name"] == name.as_str());
                port.context("no such port")?["containerPort"].clone()
            }
            number => number.clone(),
        };
        let port = port.as_u64().context("no number")?;
        Ok((u16::try_from(port)?, text(get, "path")?.to_owned()))
    }
}
