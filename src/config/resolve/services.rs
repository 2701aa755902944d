// SPDX-License-Identifier: Apache-2.0
//! What one Service may ask for: flags of ours, for which the file has no place.

use super::super::flags::list;
use super::{Errors, Flags, IpvsSettings, NOT_NEGATIVE, POSITIVE, parse_cidr};
use crate::config::settings::ServiceMetrics;
use crate::source::annotations::Setting;
use crate::source::counted::{NoSelector, is_namespace};
use crate::source::{Annotations, Counted};
use kpr_core::model::Budget;

/// Schedulers and tunnels.
pub(super) fn of_ipvs(flags: &Flags, settings: &mut IpvsSettings, errors: &mut Errors) {
    for name in list(&flags.service_schedulers).unwrap_or_default() {
        match name.trim().parse() {
            Ok(scheduler) => _ = settings.service_schedulers.insert(scheduler),
            Err(_unknown) => {
                let message = "must be the name of a scheduler of the kernel, such as wrr or mh";
                errors.invalid_text("--service-schedulers", name, message);
            }
        }
    }
    for text in list(&flags.tunnel_cidrs).unwrap_or_default() {
        match parse_cidr(text.trim()) {
            Ok(range) => settings.tunnel_cidrs.push(range),
            Err(_invalid) => errors.invalid_text("--tunnel-cidrs", text, "must be a valid CIDR"),
        }
    }
}

/// The limits for each Service.
pub(super) fn budget(flags: &Flags, errors: &mut Errors) -> Budget {
    let mut budget = Budget::default();
    for (path, flag, limit) in [
        (
            "--service-max-frontends",
            flags.service_max_frontends,
            &mut budget.frontends,
        ),
        (
            "--service-max-endpoints",
            flags.service_max_endpoints,
            &mut budget.endpoints,
        ),
        (
            "--service-max-objects",
            flags.service_max_objects,
            &mut budget.objects,
        ),
    ] {
        let Some(wanted) = flag else {
            continue;
        };
        if wanted <= 0 {
            errors.invalid(path, wanted, POSITIVE);
        }
        *limit = usize::try_from(wanted).unwrap_or_default();
    }
    budget
}

/// Which annotations count.
pub(super) fn annotations(flags: &Flags, errors: &mut Errors) -> Annotations {
    let mut annotations = Annotations::default();
    if let Some(names) = list(&flags.service_annotations) {
        annotations.allowed.clear();
        for name in names {
            match name.trim().parse() {
                Ok(setting) => _ = annotations.allowed.insert(setting),
                Err(_unknown) => {
                    let names = Setting::ALL.map(Setting::as_str).join(", ");
                    let message = format!("must be one of {names}");
                    errors.invalid_text("--service-annotations", name, &message);
                }
            }
        }
    }
    for (path, flag, most) in [
        (
            "--service-max-drain-limit",
            flags.service_max_drain_limit,
            &mut annotations.max_drain_limit,
        ),
        (
            "--service-max-slow-start",
            flags.service_max_slow_start,
            &mut annotations.max_slow_start,
        ),
    ] {
        let Some(limit) = flag else {
            continue;
        };
        if limit.is_negative() {
            errors.invalid_duration(path, limit, NOT_NEGATIVE);
        }
        *most = limit.to_duration();
    }
    annotations.counted = counted(flags, errors);
    annotations
}

/// Which Services have metrics of their own.
fn counted(flags: &Flags, errors: &mut Errors) -> Counted {
    let mut counted = Counted::default();
    for name in list(&flags.service_metrics_namespaces).unwrap_or_default() {
        let name = name.trim();
        if !is_namespace(name) {
            let message = "must be the name of a namespace, or * for all";
            errors.invalid_text("--service-metrics-namespaces", name, message);
        }
        counted.namespaces.insert(name.to_owned());
    }
    let selector = flags.service_metrics_selector.as_deref();
    if let Some(text) = selector.filter(|text| !text.is_empty()) {
        match text.parse() {
            Ok(selector) => counted.labels = Some(selector),
            Err(error) => {
                let message = NoSelector::to_string(&error);
                errors.invalid_text("--service-metrics-selector", text, &message);
            }
        }
    }
    counted
}

/// How much of their traffic is in metrics.
pub(super) fn metrics(flags: &Flags, errors: &mut Errors) -> ServiceMetrics {
    let mut metrics = ServiceMetrics {
        by_endpoint: flags.service_metrics_endpoints.unwrap_or(false),
        ..ServiceMetrics::default()
    };
    if let Some(limit) = flags.service_metrics_limit {
        if limit <= 0 {
            errors.invalid("--service-metrics-limit", limit, POSITIVE);
        }
        metrics.limit = usize::try_from(limit).unwrap_or_default();
    }
    metrics
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::settings::ServiceMetrics;
    use crate::config::{self, Command, Settings};
    use crate::source::annotations::Setting;
    use kpr_core::model::Budget;
    use kpr_core::model::ipvs_options::Scheduler;

    fn parsed(flags: &[&str]) -> Result<Settings, String> {
        let arguments = ["kube-proxy-rs", "--proxy-mode=ipvs"].iter().chain(flags);
        match config::parse(arguments.map(Into::into)) {
            Ok(Command::Run(settings)) => Ok(*settings),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.report()),
        }
    }

    #[test]
    fn what_services_may_ask_for_is_the_operators() {
        let settings = parsed(&[
            "--service-annotations=scheduler, forwarding-method",
            "--service-schedulers=mh,sh",
            "--service-max-drain-limit=90s",
            "--service-max-slow-start=40s",
            "--tunnel-cidrs=10.0.0.0/8,fd00::/64",
            "--service-max-frontends=1",
            "--service-max-endpoints=2",
            "--service-max-objects=3",
            "--service-metrics-namespaces=shop, kube-system",
            "--service-metrics-selector=app=web,tier in (a,b)",
            "--service-metrics-endpoints",
            "--service-metrics-limit=4",
        ]);
        let settings = settings.unwrap();
        let counted = &settings.annotations.counted;
        assert_eq!(
            counted.namespaces,
            ["kube-system", "shop"].map(str::to_owned).into()
        );
        assert_eq!(counted.labels, "app=web,tier in (a,b)".parse().ok());
        let metrics = ServiceMetrics {
            by_endpoint: true,
            limit: 4,
        };
        assert_eq!(settings.service_metrics, metrics);
        let allowed = [Setting::Scheduler, Setting::ForwardingMethod];
        assert_eq!(settings.annotations.allowed, allowed.into());
        assert_eq!(
            settings.annotations.max_drain_limit,
            Duration::from_secs(90)
        );
        assert_eq!(settings.annotations.max_slow_start, Duration::from_secs(40));
        let schedulers = [Scheduler::Mh, Scheduler::Sh];
        assert_eq!(settings.ipvs.service_schedulers, schedulers.into());
        assert_eq!(settings.ipvs.tunnel_cidrs.len(), 2);
        let budget = Budget {
            frontends: 1,
            endpoints: 2,
            objects: 3,
        };
        assert_eq!(settings.budget, budget);
        let none = parsed(&["--service-annotations="]).unwrap();
        assert_eq!(none.annotations.allowed, [].into());
        assert!(none.annotations.counted.is_empty());
    }

    #[test]
    fn wrong_values_are_named() {
        for (flag, value) in [
            ("--service-annotations", "weight"),
            ("--service-schedulers", "best"),
            ("--service-max-drain-limit", "-1s"),
            ("--service-max-slow-start", "-1s"),
            ("--tunnel-cidrs", "10.0.0.1"),
            ("--service-max-frontends", "0"),
            ("--service-max-endpoints", "0"),
            ("--service-max-objects", "0"),
            ("--service-metrics-namespaces", "Shop"),
            ("--service-metrics-selector", "app in"),
            ("--service-metrics-limit", "0"),
        ] {
            let error = parsed(&[&format!("{flag}={value}")]).unwrap_err();
            assert!(error.contains(flag) && error.contains(value), "{error}");
        }
    }
}
