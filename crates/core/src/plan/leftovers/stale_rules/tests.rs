// SPDX-License-Identifier: Apache-2.0
use super::*;

#[test]
fn jumps_of_each_mode_to_shared_chains_are_distinguished() {
    let mut present = Ruleset::new();
    for (table, chain, rule) in ipvs::static_rules::jumps()
        .into_iter()
        .chain(iptables::static_rules::jumps())
    {
        let of = present.chains.entry((table, chain)).or_default();
        if !of.contains(&rule) {
            of.push(rule);
        }
    }
    let texts = |mode| {
        let edits = foreign_jumps(&present, mode);
        edits.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let jump = |chain: &str, state: &str, comment: &str| {
        format!(
            "delete from filter/{chain}: {state}-m comment --comment \"{comment}\" -j KUBE-PROXY-FIREWALL"
        )
    };
    let of_ipvs = ["INPUT", "FORWARD"].map(|chain| jump(chain, "", "kube-proxy firewall rules"));
    assert_eq!(texts(Modes::Ipvs), of_ipvs);
    let new = "-m conntrack --ctstate NEW ";
    let of_iptables = ["INPUT", "OUTPUT", "FORWARD"]
        .map(|chain| jump(chain, new, "kubernetes load balancer firewall"));
    assert_eq!(texts(Modes::Iptables), of_iptables);
}
