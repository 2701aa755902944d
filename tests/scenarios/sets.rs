// SPDX-License-Identifier: Apache-2.0
//! A set that outgrows its size is filled anew beside and takes its place in one step.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Lab;
use kpr_testkit::cases::At;
use kpr_testkit::manifests::Service;
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{Outcome, Patience, Protocol, ask};
use kpr_testkit::wait;

const SET: &str = "KUBE-LOAD-BALANCER-SOURCE-CIDR";

/// A load balancer with so many source ranges, the client's among them.
fn restricted(ranges: u32) -> Service {
    let mut all: Vec<String> = (1..ranges)
        .map(|n| format!("100.{}.{}.{}/32", n >> 16, (n >> 8) & 255, n & 255))
        .collect();
    all.push("172.20.0.100/32".to_owned());
    Service::new("web", 1, &[Host::Web1])
        .port(81, 8080)
        .protocols(&[Protocol::Tcp])
        .exposed()
        .with("loadBalancerSourceRanges", json!(all))
}

/// `maxelem` and number of entries.
fn size(lab: &Lab) -> Result<(u32, u32)> {
    let text = lab.node().run("ipset", &["-terse", "list", SET])?;
    let after = |label: &str| -> Result<u32> {
        let rest = text.split(label).nth(1).context("no such line")?;
        let number = rest.split_whitespace().next().unwrap_or_default();
        Ok(number.parse()?)
    };
    Ok((after("maxelem")?, after("Number of entries:")?))
}

pub(super) fn outgrow_their_size(binary: &Path) -> Result<()> {
    // More than one Service may have by default.
    let allowed = "--service-max-objects=1000000";
    let lab = Lab::new(binary, &[restricted(10_000)], &[allowed])?;
    let proxy = lab.start()?;
    ensure!(size(&lab)? == (65_536, 20_000), "{:?}", size(&lab)?);
    let is_served = |service: &Service| -> Result<()> {
        for (from, is_admitted) in [(Host::Client, true), (Host::Remote, false)] {
            let to = At::Vip.address(service, Family::V4, 81);
            let patience = if is_admitted {
                Patience::Long
            } else {
                Patience::Short
            };
            let outcome = ask(lab.topology.host(from), None, to, Protocol::Tcp, patience)?;
            let is_right = matches!(outcome, Outcome::Answered(_)) == is_admitted;
            ensure!(is_right, "{from} to {to}: {outcome}");
        }
        Ok(())
    };
    is_served(&restricted(10_000))?;
    let larger = restricted(40_000);
    lab.manifests.apply(&larger)?;
    wait::until("the larger set is in its place", || {
        let found = size(&lab)?;
        ensure!(found == (131_072, 80_000), "{found:?}\n{}", proxy.log());
        Ok(())
    })?;
    is_served(&larger)?;
    // The other family may follow later.
    lab.nothing_to_do_soon()?;
    let left = lab.node().run("ipset", &["-name", "list"])?;
    ensure!(!left.lines().any(|name| name.ends_with("-n")), "{left}");
    Ok(())
}
