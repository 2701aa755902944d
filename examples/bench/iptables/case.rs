// SPDX-License-Identifier: Apache-2.0
//! One proxy from its start to its end, in a fresh node.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube_proxy_rs::clock::Clock;
use serde_json::{Map, Value, json};

use super::probe::{Pods, Probe};
use super::world::{Backend, CLUSTER_CIDR, Node, World, find};
use super::{Options, Who, eprint};
use crate::api::Writer;
use crate::process::{self, Metrics};
use crate::running::{LAST_ROUND, Running};
use crate::{cluster, pause, save};

/// The proxy is left alone for so long before a change, which is more than its minimum pause.
const QUIET: Duration = Duration::from_millis(1_500);

/// After this time without a round a proxy has done what it had to do.
const SETTLED: Duration = Duration::from_secs(3);

/// How long an idle proxy is watched.
const IDLE: Duration = Duration::from_secs(5);

/// The numbers of Services that come and go; the testbed has none of them.
const NEW: u16 = 6_000;

/// See the module.
pub(super) struct Case<'a> {
    pub(super) clock: &'a Clock,
    pub(super) world: &'a World,
    pub(super) node: &'a Node,
    pub(super) writer: &'a Writer,
    pub(super) options: &'a Options,
    pub(super) who: Who,
    pub(super) backend: Backend,
    pub(super) changes: u16,
    pub(super) burst: u16,
}

impl Case<'_> {
    /// Leaves its rules in the node.
    pub(super) fn measure(&self, program: &Path, out: &Path) -> anyhow::Result<()> {
        eprint(&format!("{}, {}", self.who.label(), self.backend.as_str()));
        let pods = Pods::new(self.world)?;
        let mut result = Map::new();
        result.insert("kind".to_owned(), json!("proxy"));
        result.insert("label".to_owned(), json!(self.who.label()));
        result.insert("backend".to_owned(), json!(self.backend.as_str()));
        result.insert("services".to_owned(), json!(self.options.shape.services));
        result.insert("endpoints".to_owned(), json!(self.options.shape.endpoints));

        let last = format!("svc-{:05}", self.options.shape.services - 1);
        let last = self.writer.cluster_ip(&last)?;
        let log = File::create(out.with_extension("log"))?;
        let forks = process::forks()?;
        let (begin, wall) = (self.clock.monotonic(), self.clock.now());
        let mut proxy = None;
        let answered = self.probe(last).until_answered(|| {
            proxy = Some(self.start(program, &log)?);
            Ok(())
        });
        let mut proxy = proxy.context("no proxy")?;
        proxy.ensure_runs()?;
        let answered = answered?.saturating_sub(begin);
        let metrics = self.inside(|| proxy.wait_programmed(self.clock))??;
        let wall = wall.as_duration().as_secs_f64();
        let rounds = metrics.series(LAST_ROUND);
        let programmed = rounds.map(|(_, at)| at - wall).fold(0.0, f64::max);
        self.settle()?;
        let pid = proxy.pid();
        let cold = json!({
            "seconds": programmed,
            "lastServiceAnswersSeconds": answered.as_secs_f64(),
            "cpuSeconds": process::cpu_with_children(pid)?,
            "forks": process::forks()? - forks,
            "memory": process::memory(pid)?,
            "rules": self.rules()?,
        });
        result.insert("cold".to_owned(), cold);

        let (forks, before) = (process::forks()?, self.work()?);
        let mut changes = Vec::new();
        for index in 0..self.changes {
            changes.push(self.change(NEW + index)?);
        }
        self.settle()?;
        let section = json!({
            "changes": changes,
            "rounds": process::difference(&before, &self.work()?),
            // Each change has three probes, which are threads.
            "forks": process::forks()? - forks - 3 * u64::from(self.changes),
        });
        result.insert("changes".to_owned(), section);

        if self.burst > 0 {
            result.insert("burst".to_owned(), self.burst(pid)?);
        }
        let (forks, cpu) = (process::forks()?, process::cpu_with_children(pid)?);
        pause(IDLE);
        let idle = json!({
            "seconds": IDLE.as_secs_f64(),
            "forks": process::forks()? - forks,
            "cpuSeconds": process::cpu_with_children(pid)? - cpu,
            "memory": process::memory(pid)?,
        });
        result.insert("idle".to_owned(), idle);
        proxy.ensure_runs()?;
        drop((proxy, pods));
        save(&out.with_extension("json"), &Value::Object(result))
    }

    fn inside<T>(&self, f: impl FnOnce() -> T) -> anyhow::Result<T> {
        self.node.namespace.enter(f)
    }

    fn probe(&self, service: IpAddr) -> Probe<'_> {
        Probe {
            clock: self.clock,
            from: &self.node.namespace,
            service,
        }
    }

    fn start(&self, program: &Path, log: &File) -> anyhow::Result<Running> {
        let kubeconfig = self.options.testbed.join("proxy.kubeconfig");
        // The proxy ends with us, however we end.
        let command: Vec<String> = [
            find("setpriv")?.display().to_string(),
            "--pdeathsig=KILL".to_owned(),
            program.display().to_string(),
            "--proxy-mode=iptables".to_owned(),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--hostname-override={}", cluster::NODE),
            format!("--cluster-cidr={CLUSTER_CIDR}"),
            // Settings of the whole machine, which a namespace cannot change.
            "--conntrack-max-per-core=0".to_owned(),
            "--conntrack-tcp-timeout-established=0".to_owned(),
            "--conntrack-tcp-timeout-close-wait=0".to_owned(),
        ]
        .into();
        let environment = self.world.environment(self.backend);
        self.inside(|| Running::start(&command, &environment, log))?
    }

    /// Waits until the proxy has nothing to do any more.
    fn settle(&self) -> anyhow::Result<()> {
        let rounds = || -> anyhow::Result<f64> {
            let metrics = self.inside(Metrics::read)?.context("no metrics")?;
            let sum = metrics.sum("kubeproxy_sync_proxy_rules_duration_seconds_count", "");
            Ok(sum.unwrap_or_default())
        };
        let mut last = rounds()?;
        let mut since = self.clock.monotonic();
        while self.clock.monotonic().saturating_sub(since) < SETTLED {
            pause(Duration::from_millis(500));
            let now = rounds()?;
            if now > last {
                (last, since) = (now, self.clock.monotonic());
            }
        }
        Ok(())
    }

    /// Partial rounds of IPv4 so far, which is the family of all Services here, and their time.
    fn work(&self) -> anyhow::Result<std::collections::BTreeMap<&'static str, f64>> {
        let metrics = self.inside(Metrics::read)?.context("no metrics")?;
        let of = |name: &str| {
            let name = format!("kubeproxy_sync_partial_proxy_rules_duration_seconds_{name}");
            metrics.sum(&name, "\"IPv4\"").unwrap_or_default()
        };
        Ok([("partial", of("count")), ("partialSeconds", of("sum"))].into())
    }

    fn rules(&self) -> anyhow::Result<Value> {
        let count = |program: &str| -> anyhow::Result<usize> {
            let program = find(&format!("{program}-{}-save", self.backend.as_str()))?;
            let text = self
                .node
                .namespace
                .run(&program.display().to_string(), &[])?;
            Ok(text.lines().filter(|line| line.starts_with("-A")).count())
        };
        Ok(json!({ "IPv4": count("iptables")?, "IPv6": count("ip6tables")? }))
    }

    /// A Service comes, loses an endpoint, and goes.
    fn change(&self, number: u16) -> anyhow::Result<Value> {
        let (service, slice) = cluster::objects(number, self.options.shape.endpoints)?;
        let name = service.metadata.name.clone().context("no name")?;
        let slice_name = slice.metadata.name.clone().context("no name")?;
        let since = |begin: Duration, at: Duration| at.saturating_sub(begin).as_secs_f64();

        pause(QUIET);
        let begin = self.clock.monotonic();
        let probe = self.probe(self.writer.create_service(&service)?);
        let answered = probe.until_answered(|| self.writer.create_slice(&slice))?;

        pause(QUIET);
        let mut slice = self.writer.slice(&slice_name)?;
        let victim = take_endpoint(&mut slice)?;
        let mut removal = Duration::ZERO;
        let gone = probe.until_gone(victim, || {
            removal = self.clock.monotonic();
            self.writer.replace(&slice).map(|_slice| ())
        })?;

        pause(QUIET);
        let mut deletion = Duration::ZERO;
        let refused = probe.until_refused(|| {
            deletion = self.clock.monotonic();
            self.writer.delete_service(&name)?;
            self.writer.delete_slice(&slice_name)
        })?;
        Ok(json!({
            "newServiceSeconds": since(begin, answered),
            "endpointRemovedSeconds": since(removal, gone),
            "serviceRemovedSeconds": since(deletion, refused),
        }))
    }

    /// Endpoints of many Services go and come back.
    fn burst(&self, pid: u32) -> anyhow::Result<Value> {
        let count = (self.burst / 2).min(self.options.shape.services);
        let mut slices: Vec<EndpointSlice> = (0..count)
            .map(|number| self.writer.slice(&format!("svc-{number:05}-0")))
            .collect::<anyhow::Result<_>>()?;
        let (before, cpu, forks) = (
            self.work()?,
            process::cpu_with_children(pid)?,
            process::forks()?,
        );
        let mut taken = Vec::new();
        let begin = self.clock.monotonic();
        for slice in &mut slices {
            let endpoints = &mut slice.endpoints;
            taken.push(
                endpoints
                    .as_mut()
                    .and_then(Vec::pop)
                    .context("no endpoint")?,
            );
        }
        let mut slices = self.writer.replace_all(&slices)?;
        for (slice, endpoint) in slices.iter_mut().zip(taken) {
            slice.endpoints.get_or_insert_default().push(endpoint);
        }
        self.writer.replace_all(&slices)?;
        let written = self.clock.monotonic().saturating_sub(begin);
        // What was written last is what a new Service comes behind.
        let (service, slice) = cluster::objects(NEW + 1_000, self.options.shape.endpoints)?;
        let probe = self.probe(self.writer.create_service(&service)?);
        let answered = probe.until_answered(|| self.writer.create_slice(&slice))?;
        self.settle()?;
        let result = json!({
            "changes": 2 * count,
            "writtenSeconds": written.as_secs_f64(),
            "effectSeconds": answered.saturating_sub(begin).as_secs_f64(),
            "cpuSeconds": process::cpu_with_children(pid)? - cpu,
            "forks": process::forks()? - forks - 1,
            "rounds": process::difference(&before, &self.work()?),
            "memory": process::memory(pid)?,
        });
        self.delete(&service, &slice)?;
        Ok(result)
    }

    fn delete(&self, service: &Service, slice: &EndpointSlice) -> anyhow::Result<()> {
        self.writer
            .delete_service(service.metadata.name.as_deref().context("no name")?)?;
        self.writer
            .delete_slice(slice.metadata.name.as_deref().context("no name")?)
    }
}

/// Takes the last endpoint out of a slice.
fn take_endpoint(slice: &mut EndpointSlice) -> anyhow::Result<Ipv4Addr> {
    let endpoint = slice
        .endpoints
        .as_mut()
        .and_then(Vec::pop)
        .context("no endpoint")?;
    Ok(endpoint.addresses.first().context("no address")?.parse()?)
}
