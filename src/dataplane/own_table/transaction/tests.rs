// SPDX-License-Identifier: Apache-2.0
//! What becomes of the rest of a transaction of which the kernel refuses something.

use std::collections::BTreeSet;

use kpr_core::model::Protocol;
use kpr_core::plan::ipvs::set::{SetId, SetSpec};
use kpr_core::plan::{Failure, FailureKind};
use nft_netlink::KernelError;

use super::*;

fn set(id: SetId) -> SetName {
    id.name(IpFamily::V4)
}

fn entry(port: u16) -> SetEntry {
    SetEntry::IpPort("10.96.0.1".parse().unwrap(), Protocol::Tcp, port)
}

fn add(port: u16) -> Step {
    Step::AddEntry {
        set: set(SetId::ClusterIp),
        entry: entry(port),
    }
}

fn delete(port: u16) -> Step {
    Step::DeleteEntry {
        set: set(SetId::ClusterIp),
        entry: entry(port),
    }
}

/// Runs steps on a kernel that refuses the elements of these ports with an error, naming the place
/// only if it `names` it. Returns the outcomes, and the number of elements of each transaction.
fn run(steps: &[Step], refused: &[u16], errno: i32, names: bool) -> (Vec<Outcome>, Vec<usize>) {
    let steps: Vec<&Step> = steps.iter().collect();
    let bad: BTreeSet<Element> = refused
        .iter()
        .map(|port| encode::element(&entry(*port)))
        .collect();
    let mut made = Vec::new();
    let outcomes = Transaction::new(&steps).run(|operations| {
        let mut elements = 0;
        let mut refusals = Vec::new();
        for (index, operation) in operations.iter().enumerate() {
            let (Operation::AddElements(_, all) | Operation::DeleteElements(_, all)) = operation
            else {
                continue;
            };
            elements += all.len();
            // As in the kernel, one of each request.
            let found = all.iter().position(|element| bad.contains(element));
            refusals.extend(found.map(|element| (index, element)));
        }
        made.push(elements);
        if refusals.is_empty() {
            return Ok(());
        }
        Err(error(&refusals, errno, names, operations.len()))
    });
    (outcomes, made)
}

fn error(places: &[(usize, usize)], errno: i32, names: bool, operations: usize) -> nft::Error {
    let mut refusals = places.iter().map(|(operation, element)| {
        let element = names.then_some(*element);
        let source = KernelError::from_errno(errno);
        nft::Refusal::new(Some(*operation), element, "add".to_owned(), source)
    });
    let first = Box::new(refusals.next().unwrap());
    let others = refusals.collect();
    nft::Error::Refused {
        first,
        others,
        operations,
    }
}

fn is_failed(outcome: &Outcome, kind: FailureKind) -> bool {
    matches!(outcome, Outcome::Failed(Failure { kind: of, .. }) if *of == kind)
}

#[test]
fn all_steps_are_one_transaction() {
    let create = Step::CreateSet(SetSpec::new(SetId::ClusterIp, IpFamily::V4, u32::MAX));
    let steps = [create, add(1), add(2), delete(3), add(4)];
    let (outcomes, made) = run(&steps, &[], 0, true);
    assert_eq!(outcomes, vec![Outcome::Done; 5]);
    assert_eq!(made, [4]);
}

#[test]
fn what_is_refused_fails_and_the_rest_is_made() {
    let steps = [add(1), add(2), delete(3), add(4)];
    let (outcomes, made) = run(&steps, &[2], libc::ENOSPC, true);
    assert!(is_failed(&outcomes[1], FailureKind::Full), "{outcomes:?}");
    for index in [0, 2, 3] {
        assert_eq!(outcomes[index], Outcome::Done);
    }
    assert_eq!(made, [4, 3]);
}

#[test]
fn deleting_what_is_not_there_succeeds() {
    let steps = [delete(1), add(2), delete(3)];
    let (outcomes, made) = run(&steps, &[1, 3], libc::ENOENT, true);
    assert_eq!(outcomes, vec![Outcome::Done; 3]);
    assert_eq!(made, [3, 1]);
}

#[test]
fn where_the_kernel_does_not_say_which_each_goes_by_itself() {
    let steps = [add(1), add(2), add(3)];
    let (outcomes, made) = run(&steps, &[2], libc::EINVAL, false);
    assert!(!matches!(outcomes[1], Outcome::Done), "{outcomes:?}");
    assert_eq!(outcomes[0], Outcome::Done);
    assert_eq!(outcomes[2], Outcome::Done);
    assert_eq!(made, [3, 1, 1, 1]);
}

#[test]
fn very_many_refusals_end() {
    let steps: Vec<Step> = (1..=50).map(add).collect();
    let refused: Vec<u16> = (1..=50).collect();
    let (outcomes, _) = run(&steps, &refused, libc::ENOMEM, true);
    assert!(
        outcomes
            .iter()
            .all(|outcome| !matches!(outcome, Outcome::Done))
    );
}

#[test]
fn sets_are_not_swapped() {
    let (a, b) = (set(SetId::ClusterIp), set(SetId::LoadBalancer));
    let (outcomes, made) = run(&[Step::SwapSets { a, b }], &[], 0, true);
    assert_eq!(outcomes, [Outcome::NotTried]);
    assert_eq!(made, [] as [usize; 0]);
}
