// SPDX-License-Identifier: Apache-2.0
//! `check-config`: errors and unsupported or deprecated fields of a configuration file.
//!
//! Besides the file itself, it reads what such files come from: a ConfigMap that holds one, and
//! kubeadm's file of several documents.

use std::fmt;
use std::path::Path;

use super::apply;
use super::decode::Finding;
use super::file::{self, Document, FileError};
use super::flags::Flags;
use super::notices;
use super::resolve::resolve;
use super::settings::Notice;
use super::types::{KIND, KubeProxyConfiguration};
use super::validation::FieldError;
use crate::yaml::Node;

/// The errors and notices of a file that could be decoded. Prints one per line.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What the proxy refuses to start with.
    pub errors: Vec<String>,
    /// What the operator should know.
    pub notices: Vec<Notice>,
    /// What the proxy would run with, defaults filled in, if it would start.
    pub configuration: Option<KubeProxyConfiguration>,
}

impl Report {
    /// Whether the proxy would start.
    pub fn is_usable(&self) -> bool {
        self.errors.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.errors {
            writeln!(f, "error: {error}")?;
        }
        for notice in &self.notices {
            writeln!(f, "notice: {notice}")?;
        }
        Ok(())
    }
}

/// Reads and validates a file.
pub fn check(path: &Path) -> Result<Report, FileError> {
    let text = file::read(path)?;
    let documents = file::documents(&text).unwrap_or_default();
    let Some((document, before, place)) = configuration_in(&documents) else {
        // There is none, and this says why.
        let findings = file::decode(path, &text)?.findings;
        let notices = findings.into_iter().map(notice_of).collect();
        return Ok(Report {
            errors: Vec::new(),
            notices,
            configuration: None,
        });
    };
    let mut report = judged(&document, before);
    report.notices.splice(..0, place);
    Ok(report)
}

fn notice_of(finding: Finding) -> Notice {
    Notice {
        message: format!("{} (line {})", finding.message, finding.line),
        subject: finding.field,
    }
}

/// A configuration, the number of lines before it, and a remark if it is not all of the file.
type Found = (Document, usize, Option<Notice>);

fn configuration_in(documents: &[Document]) -> Option<Found> {
    let of_kind = |document: &&Document| matches!(document.is_configuration(), Ok(Ok(())));
    if let Some(index) = documents.iter().position(|document| of_kind(&document)) {
        let document = documents.get(index)?;
        let message = if index == 0 {
            "this one is checked; all others are ignored".to_owned()
        } else {
            format!("this {KIND} is checked; start the proxy with a file that holds nothing else")
        };
        let subject = format!("document {}, line {}", index + 1, document.line);
        let place = (documents.len() > 1).then_some(Notice { subject, message });
        return Some((document.clone(), 0, place));
    }
    documents.iter().find_map(in_config_map)
}

/// A configuration in the data of a ConfigMap.
fn in_config_map(document: &Document) -> Option<Found> {
    let (kind, _) = document.kind().ok()?;
    let data = document.root.get("data").filter(|_| kind == "ConfigMap")?;
    data.entries().iter().find_map(|entry| {
        let inner = file::documents(entry.node.as_text()?)
            .ok()?
            .into_iter()
            .next()?;
        inner.is_configuration().ok()?.ok()?;
        let meta = document.root.get("metadata");
        let text = |name| meta.and_then(|meta| meta.get(name)).and_then(Node::as_text);
        let (namespace, name) = (text("namespace").unwrap_or("default"), text("name"));
        let place = Notice {
            subject: format!(
                "ConfigMap {namespace}/{}, {}",
                name.unwrap_or_default(),
                entry.key
            ),
            message: format!("this {KIND} is checked"),
        };
        // The lines of a text that is written as it is are lines of the file.
        let before = if entry.node.is_literal {
            entry.place.line
        } else {
            0
        };
        Some((inner, before, Some(place)))
    })
}

/// What is to be said of a configuration that has so many lines before it.
fn judged(document: &Document, before: usize) -> Report {
    let with_line = |message: &str, line: Option<usize>| match line {
        Some(line) => format!("{message} (line {})", line + before),
        None => message.to_owned(),
    };
    let reading = document.read();
    let mut notices: Vec<Notice> = reading
        .findings
        .into_iter()
        .map(|finding| {
            notice_of(Finding {
                line: finding.line + before,
                ..finding
            })
        })
        .collect();
    let mut errors: Vec<String> = reading
        .mistakes
        .iter()
        .map(|mistake| with_line(&mistake.message, Some(mistake.line)))
        .collect();
    let mut configuration = reading.configuration;
    configuration.set_defaults();
    notices.extend(notices::notices(&configuration).into_iter().map(|notice| {
        let line = line_of(&document.root, &notice.subject);
        Notice {
            message: with_line(&notice.message, line),
            ..notice
        }
    }));
    let flags = Flags::default();
    apply::forget_split_streams(&flags, &mut configuration);
    configuration.set_platform_defaults();
    let mode = configuration.mode.clone();
    // Values of the wrong type were left out, so that the rest can be judged.
    let configuration = match resolve(configuration, &flags) {
        Ok(settings) => Some(settings.configuration),
        Err(found) => {
            errors.extend(found.errors().iter().map(|error| {
                let line = line_of(&document.root, &field_of(error, &mode, &document.root));
                with_line(&error.to_string(), line)
            }));
            None
        }
    };
    Report {
        configuration: configuration.filter(|_| errors.is_empty()),
        errors,
        notices,
    }
}

/// The line of a field, whose name may be in another case.
fn line_of(root: &Node, path: &str) -> Option<usize> {
    let (mut node, mut line) = (root, None);
    for name in path.split('.') {
        let name = name.split('[').next().unwrap_or_default();
        let entry = node
            .entries()
            .iter()
            .rfind(|entry| entry.key.eq_ignore_ascii_case(name))?;
        (node, line) = (&entry.node, Some(entry.place.line));
    }
    line
}

/// The field of the file that an error is about, which has upstream's internal names.
fn field_of(error: &FieldError, mode: &str, root: &Node) -> String {
    let path = error.path.as_str();
    match path {
        "Mode.ProxyMode" => return "mode".to_owned(),
        "SyncPeriod" | "MinSyncPeriod" => return format!("{mode}.{path}"),
        "featureGates" => {
            // The gate is only in the text.
            let text = error.to_string();
            let gates = root.get(path).map_or(&[][..], Node::entries).iter();
            let named = gates.filter(|gate| text.contains(gate.key.as_str()));
            let longest = named.max_by_key(|gate| gate.key.len());
            return longest.map_or(path.to_owned(), |gate| format!("{path}.{}", gate.key));
        }
        _ => {}
    }
    [
        ("KubeProxyLinuxConfiguration.", ""),
        ("KubeProxyIPTablesConfiguration", "iptables"),
        ("KubeProxyIPVSConfiguration", "ipvs"),
        ("KubeProxyConntrackConfiguration", "conntrack"),
        ("DetectLocalConfiguration.ClusterCIDRs", "clusterCIDR"),
        (
            "DetectLocalConfiguration.InterfaceName",
            "detectLocal.bridgeInterface",
        ),
        (
            "DetectLocalConfiguration.InterfacePrefix",
            "detectLocal.interfaceNamePrefix",
        ),
    ]
    .iter()
    .fold(path.to_owned(), |path, (theirs, ours)| {
        path.replace(theirs, ours)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(body: &str) -> Report {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.conf");
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        std::fs::write(&path, format!("{head}{body}")).unwrap();
        check(&path).unwrap()
    }

    #[test]
    fn a_quiet_file_is_usable() {
        let report = report("mode: ipvs\nclusterCIDR: 10.0.0.0/8\nnodePortAddresses: [primary]\n");
        assert!(report.is_usable());
        assert_eq!(report.notices, []);
        assert_eq!(report.to_string(), "");
    }

    #[test]
    fn nftables_mode_is_refused_with_what_to_use() {
        let text = report("mode: nftables\nclusterCIDR: 10.0.0.0/8\n").to_string();
        assert!(
            text.contains("error: KubeProxyConfiguration.Mode.ProxyMode: "),
            "{text}"
        );
        assert!(text.contains("use ipvs, or iptables"), "{text}");
    }

    fn checked(text: &str) -> Report {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.conf");
        std::fs::write(&path, text).unwrap();
        check(&path).unwrap()
    }

    fn indented(text: &str) -> String {
        text.lines()
            .fold(String::new(), |all, line| all + "    " + line + "\n")
    }

    const QUIET: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                         mode: ipvs\nclusterCIDR: 10.0.0.0/8\nnodePortAddresses: [primary]\n";

    #[test]
    fn every_finding_has_its_line_and_one_verdict() {
        let text = format!(
            "{QUIET}udpIdleTimeout: 250ms\nfeatureGates:\n  SupportIPVSProxyMode: true\n  \
             WatchListClient: true\nmode: ipvs\nenableProfiling: true\noomScoreAdj: 2000\n\
             conntrack:\n  min: few\n  max: 5\n"
        );
        assert_eq!(
            checked(&text).to_string(),
            "error: conntrack.min: want a whole number from -2147483648 to 2147483647, \
             not the text \"few\" (line 14)\n\
             error: unrecognized feature gate: SupportIPVSProxyMode (gone since v1.20, remove it) (line 8)\n\
             error: KubeProxyConfiguration.KubeProxyLinuxConfiguration.OOMScoreAdj: \
             Invalid value: 2000: must be within the range [-1000, 1000] (line 12)\n\
             notice: udpIdleTimeout: gone since v1.26, remove it (line 6)\n\
             notice: mode: stands here a second time: the last one counts (line 10)\n\
             notice: conntrack.max: gone since v1.16, remove it; conntrack.maxPerCore and \
             conntrack.min set the limit (line 15)\n\
             notice: enableProfiling: no effect: there are no Go profiles (line 11)\n\
             notice: featureGates.WatchListClient: accepted, but has no effect (line 9)\n"
        );
    }

    #[test]
    fn what_kube_proxy_passes_over_is_usable() {
        let report = checked(&format!("{QUIET}colour: red\nipvs: {{}}\nipvs: null\n"));
        assert!(report.is_usable(), "{report}");
        assert_eq!(report.notices.len(), 2, "{report}");
    }

    #[test]
    fn the_configuration_in_kubeadms_file_is_found() {
        let kubeadm = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n---\n";
        let report = checked(&format!("{kubeadm}{QUIET}strictARP: true\n"));
        assert!(report.is_usable(), "{report}");
        assert_eq!(
            report.to_string(),
            "notice: document 2, line 4: this KubeProxyConfiguration is checked; \
             start the proxy with a file that holds nothing else\n\
             notice: strictARP: unknown field, has no effect: write ipvs.strictARP (line 9)\n"
        );
        let report = checked(&format!("{QUIET}---\n{kubeadm}"));
        assert!(report.is_usable(), "{report}");
        assert_eq!(
            report.to_string(),
            "notice: document 1, line 1: this one is checked; all others are ignored\n"
        );
    }

    #[test]
    fn the_configuration_in_a_config_map_is_found() {
        let inner = indented(&format!("{QUIET}bogus: 1\n"));
        let text = format!(
            "apiVersion: v1\ndata:\n  config.conf: |-\n{inner}  kubeconfig.conf: |-\n    \
             apiVersion: v1\n    kind: Config\nkind: ConfigMap\nmetadata:\n  name: kube-proxy\n  \
             namespace: kube-system\n"
        );
        assert_eq!(
            checked(&text).to_string(),
            "notice: ConfigMap kube-system/kube-proxy, config.conf: \
             this KubeProxyConfiguration is checked\n\
             notice: bogus: unknown field, has no effect: remove it (line 9)\n"
        );
        let none = "apiVersion: v1\nkind: ConfigMap\ndata: {a: b}\n";
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c");
        std::fs::write(&path, none).unwrap();
        let error = check(&path).unwrap_err().to_string();
        assert!(error.contains("no kind \"ConfigMap\""), "{error}");
    }

    #[test]
    fn fields_without_effect_are_named() {
        let report = report(
            "mode: iptables\nclusterCIDR: 10.0.0.0/8,fd00::/56\nnodePortAddresses: [10.0.0.0/8]\n\
             portRange: 1-2\nwindowsRunAsService: true\nenableProfiling: true\n\
             showHiddenMetricsForVersion: \"1.36\"\nwinkernel: {networkName: x}\n\
             nftables: {masqueradeAll: true}\nipvs: {excludeCIDRs: [10.0.0.0/8]}\n\
             clientConnection: {contentType: application/yaml, acceptContentTypes: text/plain, qps: 50}\n\
             configSyncPeriod: 1m\n\
             featureGates: {LoggingAlphaOptions: true, NativeHistograms: false}\n\
             logging: {flushFrequency: 1s, options: {text: {splitStream: true, infoBufferSize: 1Ki}}}\n",
        );
        assert!(report.is_usable(), "{report}");
        let subjects: Vec<&str> = report
            .notices
            .iter()
            .map(|notice| notice.subject.as_str())
            .collect();
        assert_eq!(
            subjects,
            [
                "nodePortAddresses",
                "nftables",
                "winkernel",
                "windowsRunAsService",
                "portRange",
                "showHiddenMetricsForVersion",
                "enableProfiling",
                "ipvs.excludeCIDRs",
                "clientConnection.contentType",
                "clientConnection.acceptContentTypes",
                "clientConnection",
                "configSyncPeriod",
                "logging.flushFrequency",
                "logging.options",
                "logging.options",
                "featureGates.NativeHistograms",
            ]
        );
    }

    #[test]
    fn blanks_that_matter_are_named() {
        let report = report("");
        let subjects: Vec<&str> = report
            .notices
            .iter()
            .map(|notice| notice.subject.as_str())
            .collect();
        assert_eq!(subjects, ["mode", "clusterCIDR", "nodePortAddresses"]);
    }
}
