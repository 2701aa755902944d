// SPDX-License-Identifier: Apache-2.0
//! `kube-proxy-rs plan`: what would change this node's kernel, without changing it. A summary
//! first; every step with `--verbose` or as JSON.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::modes::{self, Opening};
use super::output::{print, print_note};
use super::screen::{Colour, Paint};
use super::{blocking, source_options};
use crate::clock::Clock;
use crate::config::OutputFormat;
use crate::config::settings::Settings;
use crate::dataplane::exec::{Exec, System};
use crate::reconcile::observer::Unobserved;
use crate::reconcile::plan_text::PlanText;
use crate::source;

/// Exit code when there is something to change, as `diff` and others have it.
const EXIT_CHANGES: u8 = 2;

/// How long to wait for an API server.
const PATIENCE: Duration = Duration::from_secs(30);

/// Prints the plan.
pub(super) async fn command(
    settings: Settings,
    output: OutputFormat,
    is_verbose: bool,
) -> anyhow::Result<ExitCode> {
    let plans = plans(settings).await?;
    let steps: Vec<_> = plans.iter().flat_map(|plan| &plan.steps).collect();
    let is_empty = steps.is_empty();
    match output {
        OutputFormat::Json => print(format_args!("{}\n", serde_json::to_string_pretty(&steps)?))?,
        OutputFormat::Yaml => print(serde_saphyr::to_string(&steps)?)?,
        // As `diff` prints nothing where there is no difference.
        OutputFormat::Text if is_empty => print_note("nothing to change: the kernel is as wanted"),
        OutputFormat::Text => print(Summary {
            plans: &plans,
            paint: Paint::for_stdout(),
            is_verbose,
        })?,
    }
    Ok(if is_empty {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_CHANGES)
    })
}

async fn plans(settings: Settings) -> anyhow::Result<Vec<PlanText>> {
    let clock = Clock::system();
    let exec: Arc<dyn Exec> = Arc::new(System::new(clock.clone(), System::DEFAULT_DEADLINE));
    let options = source_options(&settings)?;
    let reading = source::read(
        settings.source.clone(),
        options,
        Arc::new(source::Unobserved),
    );
    let updates = tokio::time::timeout(PATIENCE, reading)
        .await
        .context("timed out reading Services and EndpointSlices")??;
    let api_servers: BTreeSet<_> = settings.source.server_addresses().await?;
    blocking(move || {
        let opened = modes::open(Opening {
            settings: Arc::new(settings),
            exec: &exec,
            clock,
            observer: Arc::new(Unobserved),
            api_servers,
            registry: None,
        })?;
        Ok(opened.sync.plan_only(updates)?)
    })
    .await
}

struct Summary<'a> {
    plans: &'a [PlanText],
    paint: Paint,
    is_verbose: bool,
}

impl Display for Summary<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let steps: usize = self.plans.iter().map(|plan| plan.steps.len()).sum();
        let title = format!("{} would change this node", counted(steps));
        writeln!(f, "{}", self.paint.with(Colour::Bold, title))?;
        for plan in self.plans {
            if plan.steps.is_empty() {
                writeln!(f, "{}  as wanted", plan.family)?;
                continue;
            }
            writeln!(f, "{}  {}", plan.family, counted(plan.steps.len()))?;
            for line in &plan.summary {
                let colour = match line.split(' ').next() {
                    Some("add" | "create") => Colour::Good,
                    Some("delete" | "destroy") => Colour::Bad,
                    _ => Colour::Doubtful,
                };
                writeln!(f, "  {}", self.paint.with(colour, line))?;
            }
        }
        if !self.is_verbose {
            let hint = "every step: --verbose, or --output json";
            return writeln!(f, "{}", self.paint.with(Colour::Dim, hint));
        }
        for plan in self.plans.iter().filter(|plan| !plan.steps.is_empty()) {
            let title = format!("steps, {}", plan.family);
            writeln!(f, "\n{}", self.paint.with(Colour::Bold, title))?;
            f.write_str(&plan.text)?;
        }
        Ok(())
    }
}

fn counted(steps: usize) -> String {
    match steps {
        1 => "1 step".to_owned(),
        steps => format!("{steps} steps"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpr_core::model::IpFamily;

    fn plans() -> Vec<PlanText> {
        let plan = |family, summary: &[&str], text: &str| PlanText {
            family,
            summary: summary.iter().map(|line| (*line).to_owned()).collect(),
            text: text.to_owned(),
            steps: text.lines().map(|line| serde_json::json!(line)).collect(),
        };
        vec![
            plan(
                IpFamily::V4,
                &["add 1 address"],
                "add address 10.96.0.1 to kube-ipvs0\n",
            ),
            plan(IpFamily::V6, &[], ""),
        ]
    }

    fn shown(paint: Paint, is_verbose: bool) -> String {
        let plans = plans();
        let summary = Summary {
            plans: &plans,
            paint,
            is_verbose,
        };
        summary.to_string()
    }

    #[test]
    fn a_summary_comes_first_and_steps_on_demand() {
        assert_eq!(
            shown(Paint::PLAIN, false),
            "1 step would change this node
IPv4  1 step
  add 1 address
IPv6  as wanted
every step: --verbose, or --output json
"
        );
        assert_eq!(
            shown(Paint::PLAIN, true),
            "1 step would change this node
IPv4  1 step
  add 1 address
IPv6  as wanted

steps, IPv4
add address 10.96.0.1 to kube-ipvs0
"
        );
        assert!(shown(Paint::COLOURED, false).contains("\x1b[32madd 1 address"));
    }
}
