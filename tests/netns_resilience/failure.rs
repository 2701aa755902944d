// SPDX-License-Identifier: Apache-2.0
//! iptables fails while the proxy runs: old rules stay in force, others are served, and it goes on
//! by itself.

use std::fs::File;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::node::{Backend, Node, late, services};
use kpr_testkit::manifests::Service;
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::wait;

const FAILURES: &str =
    "kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv4\"}";
const PARTIAL_FAILURES: &str =
    "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family=\"IPv4\"}";

/// What `restore` does in a kernel that has lost `xt_set`.
pub(crate) fn without_sets(backend: Backend) -> String {
    // What the programs say where the module is missing (iptables 1.8.9).
    let words = match backend {
        Backend::Legacy => {
            "iptables-restore v1.8.9 (legacy): Couldn't load match `set':No such file or directory"
        }
        Backend::Nft => "Warning: Extension set revision 0 not supported, missing kernel module?",
    };
    let input = "input=$(mktemp); cat >$input";
    format!(
        "{input}\nif grep -q -e 'match-set KUBE-.*SEP-' $input; then rm $input; echo \"{}\" >&2; exit 2; fi\n\
         PATH=${{PATH#*:}} ${{0##*/}} \"$@\" <$input; s=$?; rm $input; exit $s\n",
        words.replace('`', "\\`")
    )
}

/// The Service with what needs `xt_set`.
pub(crate) fn sticky(service: Service) -> Service {
    service.with("sessionAffinity", json!("ClientIP")).with(
        "sessionAffinityConfig",
        json!({ "clientIP": { "timeoutSeconds": 10 } }),
    )
}

/// A kernel that has lost `xt_set`: the Service that needs it is named and set aside, with its old
/// rules; others are served.
pub(crate) fn refused_service(node: &Node) -> Result<()> {
    let proxy = node.start()?;
    let before = node.rules(Family::V4)?;
    node.trouble("restore", &without_sets(node.backend))?;
    let web = services().remove(0);
    let mut sticky = sticky(web.clone());
    sticky.endpoints.pop();
    node.manifests.apply(&sticky)?;
    proxy.wait_for_log(&["unknown match set"])?;
    proxy.wait_for_log(&["ERROR", "IPv4", "default/web", "kernel rejected the rules"])?;
    // All its ports, in both families.
    wait::until("the Service is set aside", || {
        let aside = node.metric("kube_proxy_rs_refused_service_ports")?;
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        let wanted = 2.0 * (web.ports.len() * web.protocols.len()) as f64;
        ensure!((aside - wanted).abs() < 0.5, "{aside}, not {wanted}");
        Ok(())
    })?;
    ensure!(node.rules(Family::V4)? == before, "its rules changed");
    wait::until("the state shows why", || {
        let shown = node.state("?service=default/web")?;
        let service = &shown["services"]["default/web"];
        for family in ["IPv4", "IPv6"] {
            let error = service[family]["error"]["message"].as_str();
            ensure!(error.is_some_and(|text| text.contains("set")), "{shown}");
            let ports = service[family]["ports"].as_object();
            let has_chains =
                |port: &Value| port["believed"].as_object().is_some_and(|c| !c.is_empty());
            ensure!(ports.is_some_and(|p| p.values().all(has_chains)), "{shown}");
        }
        Ok(())
    })?;
    node.manifests.apply(&late())?;
    node.wait_for_rule(Family::V4, "default/late", true)?;
    node.wait_for_rule(Family::V6, "default/late", true)?;
    node.counts(FAILURES)?;
    // Healed.
    node.no_trouble("restore")?;
    sticky.endpoints.clear();
    node.manifests.apply(&sticky)?;
    sticky.endpoints = web.endpoints;
    node.manifests.apply(&sticky)?;
    node.wait_for_rule(Family::V4, "-m set", true)?;
    wait::until("nothing is set aside", || {
        let aside = node.metric("kube_proxy_rs_refused_service_ports")?;
        ensure!(aside < 0.5, "{aside}");
        Ok(())
    })?;
    wait::until("the state shows no trouble", || {
        let shown = node.state("")?;
        ensure!(shown["troubleCount"] == 0, "{shown}");
        ensure!(shown["serviceCount"] == 3, "{shown}");
        ensure!(
            shown["services"]["default/web"]["IPv4"]["error"].is_null(),
            "{shown}"
        );
        Ok(())
    })
}

/// A chain of a Service that goes is used by somebody else: it stays, and all else goes on.
pub(crate) fn chain_of_others(node: &Node) -> Result<()> {
    node.manifests.apply(&late())?;
    let proxy = node.start()?;
    let rules = node.rules(Family::V4)?;
    let chain = rules
        .iter()
        .filter(|rule| rule.contains("default/late") && rule.contains("KUBE-SERVICES"))
        .find_map(|rule| rule.rsplit("-j ").next())
        .or_else(|| {
            let of = |rule: &&String| rule.contains("default/late");
            let rule = rules.iter().find(of)?;
            rule.split(' ').find(|word| word.starts_with("KUBE-SVC-"))
        })
        .unwrap_or_default()
        .to_owned();
    ensure!(chain.starts_with("KUBE-SVC-"), "{rules:#?}");
    node.other(
        Family::V4,
        &format!("*nat\n:CUSTOM - [0:0]\n-A CUSTOM -j {chain}\nCOMMIT\n"),
    )?;
    node.manifests.remove("late.json")?;
    let next = Service::new("next", 4, &[Host::Web4]);
    node.manifests.apply(&next)?;
    node.wait_for_rule(Family::V4, "default/next", true)?;
    node.wait_for_rule(Family::V4, "default/late:tcp-80 cluster IP", false)?;
    node.wait_for_rule(Family::V6, "default/late", false)?;
    proxy.wait_for_log(&["IPv4", &chain, "cannot delete chain"])?;
    let rules = node.rules(Family::V4)?;
    let left: Vec<&String> = rules.iter().filter(|rule| rule.contains(&chain)).collect();
    // Its declaration, its rule, and the jump to it.
    ensure!(left.len() == 3, "{left:?}");
    let late = rules.iter().filter(|rule| rule.contains("default/late"));
    ensure!(
        late.count() == 1,
        "chains that nobody uses are left: {rules:#?}"
    );
    ensure!(
        node.metric("kube_proxy_rs_refused_service_ports")? < 0.5,
        "a Service was blamed"
    );
    Ok(())
}

/// A restore that fails for no reason of ours is tried again, and nothing is lost.
pub(crate) fn restore_recovers(node: &Node) -> Result<()> {
    let proxy = node.start()?;
    let before = node.rules(Family::V4)?;
    node.trouble(
        "restore",
        "echo 'iptables-restore: out of luck' >&2; exit 1\n",
    )?;
    node.manifests.apply(&late())?;
    proxy.wait_for_log(&["out of luck"])?;
    proxy.wait_for_log(&["will retry"])?;
    ensure!(node.rules(Family::V4)? == before, "the rules changed");
    node.counts(FAILURES)?;
    node.counts(PARTIAL_FAILURES)?;
    node.no_trouble("restore")?;
    for family in Family::ALL {
        node.wait_for_rule(family, "default/late", true)?;
    }
    wait::until("nothing is set aside", || {
        let aside = node.metric("kube_proxy_rs_refused_service_ports")?;
        ensure!(aside < 0.5, "{aside}");
        Ok(())
    })?;
    for family in ["IPv4", "IPv6"] {
        for name in [
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count",
            "kubeproxy_sync_proxy_rules_duration_seconds_count",
        ] {
            node.counts(&format!("{name}{{ip_family=\"{family}\"}}"))?;
        }
        for table in ["nat", "filter"] {
            let labels = format!("{{ip_family=\"{family}\",table=\"{table}\"}}");
            let total = node.series(&format!(
                "kubeproxy_sync_proxy_rules_iptables_total{labels}"
            ))?;
            ensure!(total >= 1.0, "no rules in {labels}");
        }
        let labels = format!("{{ip_family=\"{family}\",table=\"nat\"}}");
        let last = node.series(&format!("kubeproxy_sync_proxy_rules_iptables_last{labels}"))?;
        let total = node.series(&format!(
            "kubeproxy_sync_proxy_rules_iptables_total{labels}"
        ))?;
        ensure!(
            last >= 1.0 && last <= total,
            "{last} of {total} rules in {labels}"
        );
    }
    let backend = node.backend.as_str();
    let chosen =
        format!("kube_proxy_rs_iptables_backend{{backend=\"{backend}\",reason=\"configured\"}}");
    node.counts(&chosen)
}

/// Another program holds the lock for long: said so, no Service is blamed, and served when it is
/// free.
pub(crate) fn held_lock(node: &Node) -> Result<()> {
    let proxy = node.start()?;
    let lock = File::open(node.lock())?;
    lock.lock()?;
    node.manifests.apply(&late())?;
    proxy.wait_for_log(&["another program holds the xtables lock"])?;
    proxy.wait_for_log(&["will retry"])?;
    node.counts(FAILURES)?;
    lock.unlock()?;
    node.wait_for_rule(Family::V4, "default/late", true)?;
    let log = proxy.log();
    ensure!(
        !log.contains("kernel rejected the rules"),
        "a Service was blamed:\n{log}"
    );
    Ok(())
}

/// `iptables-save` prints nonsense: the rules stay as they are, and are repaired when it is well
/// again.
pub(crate) fn garbage(node: &Node) -> Result<()> {
    let proxy = node.start()?;
    let wanted = node.rules(Family::V4)?;
    node.trouble("save", "echo '*nat'; echo 'What is this?'; exit 0\n")?;
    node.other(Family::V4, "*nat\n-F KUBE-MARK-MASQ\nCOMMIT\n")?;
    let changed = node.rules(Family::V4)?;
    ensure!(changed != wanted, "nothing was changed");
    proxy.wait_for_log(&["cannot read the output of", "What is this?"])?;
    ensure!(node.rules(Family::V4)? == changed, "something was written");
    node.no_trouble("save")?;
    wait::until("the rules are repaired", || {
        let found = node.rules(Family::V4)?;
        ensure!(found == wanted, "{found:#?}");
        Ok(())
    })
}
