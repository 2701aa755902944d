// SPDX-License-Identifier: Apache-2.0
//! Kernel settings of IPVS that operators may ask for: flags of ours, for which the file has no
//! place.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::{Errors, Flags};
use kpr_core::plan::ipvs::sysctl::{
    CONN_LFACTOR, CONN_MAX, Cpus, EST_CPULIST, EST_NICE, RUN_ESTIMATION, SVC_LFACTOR,
};

/// `IP_VS_CONN_MAX` of the kernel.
const CONN_MAX_LIMIT: i32 = 1 << 30;

const FACTORS: RangeInclusive<i32> = -8..=8;

/// Values by path under `/proc/sys`; only what is given.
pub(super) fn asked(flags: &Flags, errors: &mut Errors) -> BTreeMap<&'static str, String> {
    let mut asked = BTreeMap::new();
    let mut ask = |path, key, given: &Option<String>, value: Result<String, String>| {
        let given = given.as_deref().unwrap_or_default();
        match value {
            _ if given.is_empty() => {}
            Ok(value) => _ = asked.insert(key, value),
            Err(message) => errors.invalid_text(path, given, &message),
        }
    };
    let run = &flags.ipvs_run_estimation;
    let value = match run.as_deref() {
        Some("true") => Ok("1".to_owned()),
        Some("false") => Ok("0".to_owned()),
        _ => Err("must be true or false".to_owned()),
    };
    ask("--ipvs-run-estimation", RUN_ESTIMATION, run, value);
    let cpus = &flags.ipvs_est_cpulist;
    let value = match cpus.as_deref().unwrap_or_default().parse::<Cpus>() {
        Ok(cpus) => Ok(cpus.to_string()),
        Err(_odd) => Err("must be numbers and ranges of CPUs such as 0-3,8".to_owned()),
    };
    ask("--ipvs-est-cpulist", EST_CPULIST, cpus, value);
    let numbers = [
        ("--ipvs-est-nice", EST_NICE, &flags.ipvs_est_nice, -20..=19),
        (
            "--ipvs-conn-lfactor",
            CONN_LFACTOR,
            &flags.ipvs_conn_lfactor,
            FACTORS,
        ),
        (
            "--ipvs-svc-lfactor",
            SVC_LFACTOR,
            &flags.ipvs_svc_lfactor,
            FACTORS,
        ),
        (
            "--ipvs-conn-max",
            CONN_MAX,
            &flags.ipvs_conn_max,
            1..=CONN_MAX_LIMIT,
        ),
    ];
    for (path, key, given, range) in numbers {
        ask(path, key, given, number(given.as_deref(), &range));
    }
    asked
}

fn number(given: Option<&str>, range: &RangeInclusive<i32>) -> Result<String, String> {
    let number = given.and_then(|given| given.parse::<i32>().ok());
    match number.filter(|number| range.contains(number)) {
        Some(number) => Ok(number.to_string()),
        None => Err(format!(
            "must be {} to {}, inclusive",
            range.start(),
            range.end()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Command};

    fn parsed(flags: &[&str]) -> Result<BTreeMap<&'static str, String>, String> {
        let arguments = ["kube-proxy-rs", "--proxy-mode=ipvs"].iter().chain(flags);
        match config::parse(arguments.map(Into::into)) {
            Ok(Command::Run(settings)) => Ok(settings.ipvs.sysctls),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.report()),
        }
    }

    #[test]
    fn only_what_is_given_is_asked_for() {
        assert_eq!(parsed(&[]), Ok(BTreeMap::new()));
        let other_mode = ["--ipvs-run-estimation=false", "--proxy-mode=iptables"];
        assert_eq!(parsed(&other_mode), Ok(BTreeMap::new()));
        let all = parsed(&[
            "--ipvs-run-estimation=false",
            "--ipvs-est-cpulist=8,0,1",
            "--ipvs-est-nice=-20",
            "--ipvs-conn-lfactor=-5",
            "--ipvs-svc-lfactor=8",
            "--ipvs-conn-max=1073741824",
        ]);
        let wanted = [
            (RUN_ESTIMATION, "0"),
            (EST_CPULIST, "0-1,8"),
            (EST_NICE, "-20"),
            (CONN_LFACTOR, "-5"),
            (SVC_LFACTOR, "8"),
            (CONN_MAX, "1073741824"),
        ];
        let wanted = wanted.map(|(key, value)| (key, value.to_owned()));
        assert_eq!(all, Ok(wanted.into()));
        let run = parsed(&["--ipvs-run-estimation=true", "--ipvs-est-nice="]);
        assert_eq!(run, Ok([(RUN_ESTIMATION, "1".to_owned())].into()));
    }

    #[test]
    fn wrong_values_are_named() {
        for (flag, value) in [
            ("--ipvs-run-estimation", "maybe"),
            ("--ipvs-est-cpulist", "all"),
            ("--ipvs-est-cpulist", "3-1"),
            ("--ipvs-est-nice", "20"),
            ("--ipvs-est-nice", "-21"),
            ("--ipvs-conn-lfactor", "9"),
            ("--ipvs-svc-lfactor", "-9"),
            ("--ipvs-conn-max", "0"),
            ("--ipvs-conn-max", "1073741825"),
        ] {
            let error = parsed(&[&format!("{flag}={value}")]).unwrap_err();
            assert!(error.contains(flag) && error.contains(value), "{error}");
        }
    }
}
