// SPDX-License-Identifier: Apache-2.0
//! The third mode runs as the others do: found by its name, planned, and run by the same loop.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::MODE;
use crate::app::modes::{Opened, Opening, open};
use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::config::{self, Command};
use crate::dataplane::exec::{Exec, System};
use crate::reconcile::Input;
use crate::reconcile::observer::{Applied, Observer, Unobserved};
use crate::source::Update;
use kpr_core::model::testing::{endpoint, service, slice};
use kpr_core::model::{Event, IpFamily};

fn opened(observer: Arc<dyn Observer>) -> Opened {
    let arguments = ["kube-proxy-rs", "--manifests=/m"].map(Into::into);
    let Command::Run(settings) = config::parse(arguments).unwrap() else {
        panic!("not a command to run")
    };
    let clock = Clock::system();
    let exec: Arc<dyn Exec> = Arc::new(System::new(clock.clone(), System::DEFAULT_DEADLINE));
    let settings = Arc::new(Settings {
        mode: MODE,
        ..*settings
    });
    let opening = Opening {
        settings,
        exec: &exec,
        clock,
        observer,
        api_servers: std::collections::BTreeSet::new(),
        registry: None,
    };
    open(opening).unwrap()
}

fn objects() -> [Event; 2] {
    let web = service("ns/web").cluster_ips(&["10.96.0.7"]).port(80);
    [
        Event::ServicesReplaced(vec![web]),
        Event::SlicesReplaced(vec![
            slice("ns/web", "a", vec![endpoint("10.1.0.5")]).port(8080),
        ]),
    ]
}

#[test]
fn it_is_planned_like_any_other() {
    let Opened { sync, families } = opened(Arc::new(Unobserved));
    assert_eq!(families, [IpFamily::V4]);
    let plans = sync.plan_only(objects().map(Update::Model).into()).unwrap();
    let texts: Vec<&str> = plans.iter().map(|plan| plan.text.as_str()).collect();
    assert_eq!(texts, ["serve ns/web at 10.96.0.7:80\n"]);
}

/// Keeps the plans that were applied.
#[derive(Debug, Default)]
struct Plans(Mutex<Vec<Value>>);

impl Plans {
    async fn wait_for(&self, count: usize) {
        while self.0.lock().unwrap().len() < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Observer for Plans {
    fn applied(&self, _family: IpFamily, applied: Applied) {
        self.0.lock().unwrap().push(applied.plan.to_json());
    }
}

#[tokio::test]
async fn it_runs_in_the_same_loop() {
    let plans = Arc::new(Plans::default());
    let sync = opened(plans.clone()).sync;
    let (inputs, received) = mpsc::channel(8);
    let (_stop, stopped) = watch::channel(false);
    let applied = plans.clone();
    let talk = async move {
        let send = async |update| inputs.send(Input::Source(update)).await.unwrap();
        send(Update::Node(None)).await;
        for event in objects() {
            send(Update::Model(event)).await;
        }
        applied.wait_for(1).await;
        send(Update::Model(Event::ServicesReplaced(Vec::new()))).await;
        applied.wait_for(2).await;
    };
    tokio::join!(sync.run(received, stopped), talk);
    let steps: Vec<Value> = plans.0.lock().unwrap().iter().map(|plan| plan["steps"].clone()).collect();
    let expected = [
        serde_json::json!([{ "Serve": ["ns/web", "10.96.0.7:80"] }]),
        serde_json::json!([{ "Forget": ["ns/web"] }]),
    ];
    assert_eq!(steps, expected);
}
