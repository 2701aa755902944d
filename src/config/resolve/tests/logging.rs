// SPDX-License-Identifier: Apache-2.0
//! The rules of the `logging` section.

use super::*;
use crate::config::types::{Quantity, VmoduleItem};

#[test]
fn logging_is_checked() {
    refused(
        |c| c.logging.flush_frequency = GoDuration::ZERO.into(),
        "logging.flushFrequency: Invalid value: \"0s\": Must be greater than zero",
    );
    refused(
        |c| "xml".clone_into(&mut c.logging.format),
        "logging.format: Invalid value: \"xml\": Unsupported log format",
    );
    refused(
        |c| c.logging.verbosity = 2_147_483_648,
        "logging.verbosity: Invalid value: 2147483648: Must be <= 2147483647",
    );
    let json = settings(|c| "json".clone_into(&mut c.logging.format));
    assert_eq!(json.logging.format, LogFormat::Json);
}

#[test]
fn json_logs_need_their_gate() {
    refused(
        |c| {
            "json".clone_into(&mut c.logging.format);
            c.feature_gates
                .insert("LoggingBetaOptions".to_owned(), false);
        },
        "logging.format: Forbidden: Log format json is disabled, see LoggingBetaOptions feature",
    );
}

#[test]
fn vmodule_is_for_text_logs_with_sound_patterns() {
    let item = |pattern: &str, verbosity: u32| VmoduleItem {
        file_pattern: pattern.to_owned(),
        verbosity,
    };
    refused(
        |c| {
            "json".clone_into(&mut c.logging.format);
            c.logging.vmodule = vec![item("a", 1)];
        },
        "logging.vmodule: Forbidden: Only supported for text log format",
    );
    refused(
        |c| c.logging.vmodule = vec![item("a", 1), item("", 1)],
        "logging.vmodule[1]: Required value: File pattern must not be empty",
    );
    refused(
        |c| c.logging.vmodule = vec![item("a=b", 1)],
        "logging.vmodule[0]: Invalid value: \"a=b\": File pattern must not contain equal sign or comma",
    );
    refused(
        |c| c.logging.vmodule = vec![item("a", u32::MAX)],
        "logging.vmodule[0]: Invalid value: 4294967295: Must be <= 2147483647",
    );
    let settings = settings(|c| c.logging.vmodule = vec![item("health", 4)]);
    assert_eq!(settings.logging.vmodule, [("health".to_owned(), 4)]);
}

#[test]
fn options_of_log_formats_need_their_gate() {
    refused(
        |c| c.logging.options.text.info_buffer_size = Quantity("1Ki".to_owned()),
        "logging.options.text.infoBufferSize: Forbidden: Feature LoggingAlphaOptions is disabled",
    );
    refused(
        |c| c.logging.options.json.info_buffer_size = Quantity("1Ki".to_owned()),
        "logging.options.json.infoBufferSize: Forbidden: Feature LoggingAlphaOptions is disabled",
    );
    // kube-proxy starts from a file that has it.
    settings(|c| c.logging.options.text.split_stream = true);
    settings(|c| {
        c.logging.options.text.info_buffer_size = Quantity("1Ki".to_owned());
        c.feature_gates
            .insert("LoggingAlphaOptions".to_owned(), true);
    });
}
