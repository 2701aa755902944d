// SPDX-License-Identifier: Apache-2.0
//! `check-config`: errors and unsupported or deprecated fields of a configuration file.

use std::fmt;
use std::path::Path;

use super::file::{self, FileError};
use super::flags::Flags;
use super::notices;
use super::resolve::resolve;
use super::settings::Notice;
use super::validation::FieldError;

/// The errors and notices of a file that could be decoded. Prints one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Values that the proxy refuses to start with.
    pub errors: Vec<FieldError>,
    /// What the operator should know.
    pub notices: Vec<Notice>,
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
    let mut configuration = file::load(path)?;
    configuration.set_defaults();
    let notices = notices::notices(&configuration);
    configuration.set_platform_defaults();
    let errors = match resolve(configuration, &Flags::default()) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.errors().to_vec(),
    };
    Ok(Report { errors, notices })
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
