// SPDX-License-Identifier: Apache-2.0
//! `/state`: the last plans, and the state of each Service.
//!
//! The loop answers between two rounds and never waits for a client. Requests are served one at a
//! time, so that they cannot starve the loop.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::instrumentation::LastPlans;
use crate::reconcile::Input;
use crate::reconcile::show::{Explain, Owner, Question, Shown, TooMany};
use kpr_core::model::ServiceName;
use kpr_core::plan::explain::Explanation;

/// How long to wait for the loop.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Services shown without `limit`.
pub(super) const LIMIT: usize = 100;

/// See the module.
#[derive(Debug)]
pub(super) struct StatePage {
    /// Filled by the loop's observer.
    pub(super) last_plans: LastPlans,
    inputs: mpsc::Sender<Input>,
    turn: Mutex<()>,
    patience: Duration,
}

impl StatePage {
    pub(super) fn new(inputs: mpsc::Sender<Input>) -> Self {
        Self {
            last_plans: LastPlans::default(),
            inputs,
            turn: Mutex::new(()),
            patience: PATIENCE,
        }
    }

    /// The page for a query such as `service=default/web` or `limit=10`. Fails with what is wrong
    /// with the query.
    pub(super) async fn show(&self, query: &[(String, String)]) -> Result<Value, String> {
        let question = question(query)?;
        let shown = self.answer(question).await;
        let mut page = json!({ "lastPlan": self.last_plans.to_json() });
        if let Some(page) = page.as_object_mut() {
            match shown.map(serde_json::to_value) {
                Some(Ok(Value::Object(shown))) => page.extend(shown),
                // A round is long, or has not begun; the last plans are known nevertheless.
                _ => {
                    page.insert("isBusy".to_owned(), Value::Bool(true));
                }
            }
        }
        Ok(page)
    }

    /// What the loop says, unless it does not answer in time.
    pub(super) async fn answer(&self, question: Question) -> Option<Shown> {
        let answer = tokio::time::timeout(self.patience, self.ask(question));
        answer.await.ok().flatten()
    }

    async fn ask(&self, question: Question) -> Option<Shown> {
        self.put(|answer| Input::Show(question, answer)).await
    }

    /// What connections meet, unless the loop does not answer in time.
    pub(super) async fn explain(
        &self,
        question: Explain,
    ) -> Option<Result<Vec<Explanation>, TooMany>> {
        let answer = self.put(|answer| Input::Explain(question, answer));
        let answer = tokio::time::timeout(self.patience, answer);
        answer.await.ok().flatten()
    }

    /// Whose virtual servers there are, unless the loop does not answer in time.
    pub(super) async fn owners(&self, counted: bool, patience: Duration) -> Option<Vec<Owner>> {
        let answer = self.put(|answer| Input::Owners(counted, answer));
        tokio::time::timeout(patience, answer).await.ok().flatten()
    }

    async fn put<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Option<T> {
        let _turn = self.turn.lock().await;
        let (answer, answered) = oneshot::channel();
        self.inputs.send(input(answer)).await.ok()?;
        answered.await.ok()
    }
}

fn question(query: &[(String, String)]) -> Result<Question, String> {
    let mut question = Question {
        service: None,
        matching: None,
        skip: 0,
        limit: LIMIT,
    };
    for (name, value) in query {
        match name.as_str() {
            "service" => {
                let (namespace, name) = value
                    .split_once('/')
                    .ok_or_else(|| format!("service {value:?} is not namespace/name"))?;
                question.service = Some(ServiceName::new(namespace, name));
            }
            "limit" => {
                question.limit = value
                    .parse()
                    .map_err(|error| format!("limit {value:?}: {error}"))?;
            }
            _ => return Err(format!("unknown parameter {name:?}: service, limit")),
        }
    }
    Ok(question)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(query: &[(&str, &str)]) -> Vec<(String, String)> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        query.iter().map(own).collect()
    }

    fn page() -> (StatePage, mpsc::Receiver<Input>) {
        let (inputs, received) = mpsc::channel(1);
        (StatePage::new(inputs), received)
    }

    #[tokio::test]
    async fn the_loops_answer_stands_beside_the_last_plans() {
        let (page, mut received) = page();
        let answering = async {
            let Some(Input::Show(question, answer)) = received.recv().await else {
                panic!("not a question")
            };
            assert_eq!(question.service, Some(ServiceName::new("default", "web")));
            assert_eq!(question.limit, 7);
            let service_count = 3;
            answer
                .send(Shown {
                    service_count,
                    ..Shown::default()
                })
                .unwrap();
        };
        let query = pairs(&[("service", "default/web"), ("limit", "7")]);
        let (shown, ()) = tokio::join!(page.show(&query), answering);
        let shown = shown.unwrap();
        assert_eq!(shown["serviceCount"], 3);
        assert_eq!(shown["lastPlan"], json!({}));
        assert_eq!(shown["isBusy"], Value::Null);
    }

    #[tokio::test]
    async fn a_loop_that_does_not_answer_is_busy() {
        let (mut page, _received) = page();
        page.patience = Duration::ZERO;
        let shown = page.show(&[]).await.unwrap();
        assert_eq!(shown, json!({ "lastPlan": {}, "isBusy": true }));
    }

    #[tokio::test]
    async fn a_wrong_question_is_answered_with_what_is_wrong() {
        let (page, _received) = page();
        for (name, value, error) in [
            ("service", "web", "service \"web\" is not namespace/name"),
            ("limit", "-1", "limit \"-1\": invalid digit found in string"),
            ("x", "1", "unknown parameter \"x\": service, limit"),
        ] {
            let answer = page.show(&pairs(&[(name, value)])).await;
            assert_eq!(answer, Err(error.to_owned()));
        }
    }
}
