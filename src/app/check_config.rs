// SPDX-License-Identifier: Apache-2.0
//! `kube-proxy-rs check-config`: whether the proxy would start with a file, and what its author
//! should know. The verdict first; the effective configuration with `--verbose`.

use std::fmt::{self, Display, Formatter};
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::output::print;
use super::screen::{Colour, Paint};
use crate::config::OutputFormat;
use crate::config::check::{self, Report};

/// Prints the verdict on a file. Exit code 1: the proxy would not start with it.
pub(super) fn command(
    file: &Path,
    output: OutputFormat,
    is_verbose: bool,
) -> anyhow::Result<ExitCode> {
    let report = check::check(file)?;
    let effective = is_verbose.then(|| report.configuration.clone()).flatten();
    let value = || {
        let notices = report.notices.iter();
        let notices = notices.map(|it| json!({ "subject": it.subject, "message": it.message }));
        let mut value = json!({
            "usable": report.is_usable(),
            "errors": report.errors,
            "notices": notices.collect::<Vec<_>>(),
        });
        if let (Some(effective), Some(fields)) = (&effective, value.as_object_mut()) {
            fields.insert("configuration".to_owned(), json!(effective));
        }
        value
    };
    match output {
        OutputFormat::Text => {
            print(Verdict {
                file: &file.display().to_string(),
                report: &report,
                paint: Paint::for_stdout(),
            })?;
            if let Some(effective) = effective {
                print(format_args!("\n{}", serde_saphyr::to_string(&effective)?))?;
            }
        }
        OutputFormat::Json => {
            print(format_args!(
                "{}\n",
                serde_json::to_string_pretty(&value())?
            ))?;
        }
        OutputFormat::Yaml => print(serde_saphyr::to_string(&value())?)?,
    }
    Ok(if report.is_usable() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

struct Verdict<'a> {
    file: &'a str,
    report: &'a Report,
    paint: Paint,
}

impl Display for Verdict<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Report {
            errors, notices, ..
        } = self.report;
        let verdict = if errors.is_empty() {
            self.paint.with(Colour::Good, "usable")
        } else {
            self.paint.with(Colour::Bad, "not usable")
        };
        let count = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            count => format!("{count} {what}s"),
        };
        let (errors, notices) = (errors.len(), notices.len());
        writeln!(
            f,
            "{}: {verdict}: {}, {}",
            self.file,
            count(errors, "error"),
            count(notices, "notice")
        )?;
        for line in self.report.to_string().lines() {
            let (kind, rest) = line.split_once(": ").unwrap_or(("", line));
            let colour = match kind {
                "error" => Colour::Bad,
                _ => Colour::Doubtful,
            };
            writeln!(f, "{}: {rest}", self.paint.with(colour, kind))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Notice;

    #[test]
    fn the_verdict_comes_first() {
        let notice = Notice {
            subject: "mode".to_owned(),
            message: "blank".to_owned(),
        };
        let mut report = Report {
            errors: Vec::new(),
            notices: vec![notice],
            configuration: None,
        };
        let shown = |report: &Report, paint| {
            let file = "config.conf";
            Verdict {
                file,
                report,
                paint,
            }
            .to_string()
        };
        assert_eq!(
            shown(&report, Paint::PLAIN),
            "config.conf: usable: 0 errors, 1 notice\nnotice: mode: blank\n"
        );
        report.errors.push("ipvs.x: wrong".to_owned());
        assert_eq!(
            shown(&report, Paint::PLAIN),
            "config.conf: not usable: 1 error, 1 notice\nerror: ipvs.x: wrong\nnotice: mode: blank\n"
        );
        assert!(shown(&report, Paint::COLOURED).contains("\x1b[31mnot usable"));
    }
}
