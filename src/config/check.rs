// SPDX-License-Identifier: Apache-2.0
//! `check-config`: what is wrong, unsupported or deprecated in a configuration file.

use std::fmt;
use std::path::{Path, PathBuf};

use super::file::{self, FileError};
use super::notices;
use super::resolve::{CommandLine, resolve};
use super::settings::Notice;
use super::validation::FieldError;

/// What was found in a file that could be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    /// The file.
    pub path: PathBuf,
    /// Values that the proxy refuses to start with.
    pub errors: Vec<FieldError>,
    /// What the operator should know.
    pub notices: Vec<Notice>,
}

impl Findings {
    /// Whether the proxy would start.
    pub fn is_usable(&self) -> bool {
        self.errors.is_empty()
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        for error in &self.errors {
            writeln!(f, "{path}: error: {error}")?;
        }
        for notice in &self.notices {
            writeln!(f, "{path}: note: {notice}")?;
        }
        if self.is_usable() {
            writeln!(f, "{path}: usable")?;
        }
        Ok(())
    }
}

/// Reads a file and judges it.
pub fn check(path: &Path) -> Result<Findings, FileError> {
    let mut configuration = file::load(path)?;
    configuration.set_defaults();
    let notices = notices::notices(&configuration);
    configuration.set_platform_defaults();
    let errors = match resolve(configuration, CommandLine::default()) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.errors().to_vec(),
    };
    Ok(Findings {
        path: path.to_owned(),
        errors,
        notices,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(body: &str) -> Findings {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.conf");
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        std::fs::write(&path, format!("{head}{body}")).unwrap();
        check(&path).unwrap()
    }

    #[test]
    fn a_quiet_file_is_usable() {
        let findings =
            findings("mode: ipvs\nclusterCIDR: 10.0.0.0/8\nnodePortAddresses: [primary]\n");
        assert!(findings.is_usable());
        assert_eq!(findings.notices, []);
        assert!(findings.to_string().ends_with("config.conf: usable\n"));
    }

    #[test]
    fn nftables_mode_is_refused_with_what_to_use() {
        let text = findings("mode: nftables\nclusterCIDR: 10.0.0.0/8\n").to_string();
        assert!(
            text.contains("error: KubeProxyConfiguration.Mode.ProxyMode: "),
            "{text}"
        );
        assert!(text.contains("use ipvs, or iptables"), "{text}");
        assert!(!text.contains("usable"), "{text}");
    }

    #[test]
    fn fields_without_effect_are_named() {
        let findings = findings(
            "mode: iptables\nclusterCIDR: 10.0.0.0/8,fd00::/56\nnodePortAddresses: [10.0.0.0/8]\n\
             portRange: 1-2\nwindowsRunAsService: true\nenableProfiling: true\n\
             showHiddenMetricsForVersion: \"1.36\"\nwinkernel: {networkName: x}\n\
             nftables: {masqueradeAll: true}\nipvs: {excludeCIDRs: [10.0.0.0/8]}\n\
             clientConnection: {contentType: application/yaml, acceptContentTypes: text/plain, qps: 50}\n\
             configSyncPeriod: 1m\n\
             featureGates: {LoggingAlphaOptions: true, NativeHistograms: false}\n\
             logging: {flushFrequency: 1s, options: {text: {splitStream: true, infoBufferSize: 1Ki}}}\n",
        );
        assert!(findings.is_usable(), "{findings}");
        let subjects: Vec<&str> = findings
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
        let findings = findings("");
        let subjects: Vec<&str> = findings
            .notices
            .iter()
            .map(|notice| notice.subject.as_str())
            .collect();
        assert_eq!(subjects, ["mode", "clusterCIDR", "nodePortAddresses"]);
    }
}
