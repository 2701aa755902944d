// SPDX-License-Identifier: Apache-2.0
//! Applies flags to a configuration.

use super::defaults::{HEALTHZ_PORT, METRICS_PORT, append_port};
use super::flags::{FlagError, Flags, gates, strings, vmodule};
use super::types::KubeProxyConfiguration;

/// Flags that count beside a file: those of logging, and the node's name.
pub(super) fn beside_file(
    flags: &Flags,
    config: &mut KubeProxyConfiguration,
) -> Result<(), FlagError> {
    if let Some(name) = &flags.hostname_override {
        let trimmed = name.trim().to_lowercase();
        if trimmed.is_empty() && !name.is_empty() {
            return Err(FlagError::Value {
                flag: "hostname-override",
                value: name.clone(),
                message: "empty hostname-override is invalid".to_owned(),
            });
        }
        if !trimmed.is_empty() {
            config.hostname_override = trimmed;
        }
    }
    flags.apply(config, true);
    // The first match counts, so flags go first.
    config.logging.vmodule.splice(..0, vmodule(&flags.vmodule)?);
    Ok(())
}

/// `splitStream` counts as a flag alone: upstream's own way to let flags win over the file clears
/// what the file says.
pub(super) fn forget_split_streams(flags: &Flags, config: &mut KubeProxyConfiguration) {
    let options = &mut config.logging.options;
    options.text.split_stream &= flags.log_text_split_stream.is_some();
    options.json.split_stream &= flags.log_json_split_stream.is_some();
}

/// All flags of the configuration, when there is no file.
pub(super) fn all(flags: &Flags, config: &mut KubeProxyConfiguration) -> Result<(), FlagError> {
    beside_file(flags, config)?;
    config.feature_gates.extend(gates(&flags.feature_gates)?);

    servers(flags, config);
    flags.apply(config, false);
    config.ipvs.exclude_cidrs = strings(&flags.ipvs_exclude_cidrs);
    config.node_port_addresses = strings(&flags.nodeport_addresses);
    Ok(())
}

/// Addresses of the two servers, completed from the deprecated port flags. (Upstream forgets the
/// ports together with `--write-config-to`.)
fn servers(flags: &Flags, config: &mut KubeProxyConfiguration) {
    if let Some(address) = flags.bind_address.as_deref().filter(|a| !a.is_empty()) {
        address.clone_into(&mut config.bind_address);
    }
    for (address, given, port, default_port) in [
        (
            &mut config.healthz_bind_address,
            &flags.healthz_bind_address,
            flags.healthz_port,
            HEALTHZ_PORT,
        ),
        (
            &mut config.metrics_bind_address,
            &flags.metrics_bind_address,
            flags.metrics_port,
            METRICS_PORT,
        ),
    ] {
        // As upstream: an empty address keeps the default.
        match (given.as_ref().filter(|given| !given.is_empty()), port) {
            (_, Some(0)) => address.clear(),
            (Some(given), port) => {
                address.clone_from(given);
                append_port(address, port.map_or(default_port, port_number));
            }
            (None, Some(port)) => {
                // The default has a port of its own, which this one replaces.
                if let Some(host) = address.strip_suffix(&format!(":{default_port}")) {
                    *address = format!("{host}:{}", port_number(port));
                }
            }
            (None, None) => {}
        }
    }
}

/// An impossible port becomes 0, which validation rejects.
fn port_number(port: i32) -> u16 {
    u16::try_from(port).unwrap_or(0)
}
