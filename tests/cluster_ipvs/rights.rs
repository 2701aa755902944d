// SPDX-License-Identifier: Apache-2.0
//! The user that the proxy is may do what the `ClusterRole` of kube-proxy says, and nothing else;
//! the proxy asks for nothing else.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::Test;
use crate::objects::service;
use crate::world::{NAMESPACE, World};
use kpr_testkit::testbed::succeeded;

pub(crate) const TESTS: &[Test] = &[
    (
        "the_role_of_kube_proxy_is_enough",
        the_role_of_kube_proxy_is_enough,
    ),
    (
        "the_proxy_may_do_nothing_else",
        the_proxy_may_do_nothing_else,
    ),
];

fn the_role_of_kube_proxy_is_enough(world: &mut World) {
    world.create(&service("web", ""));
    world.agree();
    let metrics = world.ask_proxy("/metrics");
    let refused: Vec<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("rest_client_requests_total"))
        .filter(|line| line.contains("code=\"401\"") || line.contains("code=\"403\""))
        .collect();
    assert_eq!(refused, [""; 0]);
    assert!(
        metrics.contains("rest_client_requests_total{code=\"200\""),
        "{metrics}"
    );
}

fn the_proxy_may_do_nothing_else(world: &mut World) {
    let review = format!(
        "apiVersion: authorization.k8s.io/v1\nkind: SelfSubjectRulesReview\nspec: {{namespace: {NAMESPACE}}}"
    );
    let arguments = ["create", "--validate=false", "-f", "-", "-o", "json"];
    let answer = world.testbed.kubectl_as("proxy", &arguments, &review);
    let answer: Value = serde_json::from_str(&succeeded(&arguments, &answer)).unwrap();
    let mut rights = BTreeSet::new();
    for rule in answer["status"]["resourceRules"].as_array().unwrap() {
        for resource in rule["resources"].as_array().unwrap() {
            for verb in rule["verbs"].as_array().unwrap() {
                rights.insert(format!(
                    "{} {}",
                    verb.as_str().unwrap(),
                    resource.as_str().unwrap()
                ));
            }
        }
    }
    let expected = [
        "create events",
        "create selfsubjectaccessreviews",
        "create selfsubjectreviews",
        "create selfsubjectrulesreviews",
        // Every service account may read them.
        "get clustertrustbundles",
        "get nodes",
        "list clustertrustbundles",
        "list endpoints",
        "list endpointslices",
        "list nodes",
        "list servicecidrs",
        "list services",
        "patch events",
        "update events",
        "watch clustertrustbundles",
        "watch endpoints",
        "watch endpointslices",
        "watch nodes",
        "watch servicecidrs",
        "watch services",
    ];
    assert_eq!(rights, expected.map(str::to_owned).into());

    world.create(&service("web", ""));
    for attempt in [
        "get secrets",
        "get pods",
        "get configmaps",
        "delete service web",
        "label service web a=b",
        "create service clusterip mine --tcp=80",
        "delete node kpr-guest",
        "label node kpr-guest a=b",
        "create configmap mine",
    ] {
        let mut arguments = vec!["--namespace", NAMESPACE];
        arguments.extend(attempt.split(' '));
        let output = world.testbed.kubectl_as("proxy", &arguments, "");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && error.contains("is forbidden"),
            "{attempt}: {error}"
        );
    }
}
