// SPDX-License-Identifier: Apache-2.0
//! PURE: rules that every plan obeys. Tests run them over every plan that they see.

use std::collections::BTreeSet;

use super::set::{SetEntry, SetId};
use super::state::State;
use super::step::{Plan, Step};
use crate::model::IpFamily;

/// A plan that must not be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("step {0:?} comes after a later phase")]
    Order(String),
    #[error("step {0:?} is there twice")]
    Repeated(String),
    #[error("step {0:?} binds an address before the entry that makes its unknown ports refuse")]
    AddressWithoutEntry(String),
    #[error("step {0:?} lets go of the reject entry of an address that is still bound")]
    EntryBeforeAddress(String),
    #[error("step {step:?} would be refused: {refusal}")]
    Refused {
        step: String,
        refusal: super::state::Refusal,
    },
}

/// Checks the order of a plan, and that a kernel in the state `believed` would take every step.
pub fn check(plan: &Plan, believed: &State) -> Result<(), Violation> {
    let mut state = believed.clone();
    let mut seen = BTreeSet::new();
    let mut last = None;
    for (phase, step) in plan.phases() {
        let text = step.to_string();
        if last.is_some_and(|last| last > *phase) {
            return Err(Violation::Order(text));
        }
        last = Some(*phase);
        if !seen.insert(text.clone()) {
            return Err(Violation::Repeated(text));
        }
        check_address(step, &state)?;
        state.apply(step).map_err(|refusal| Violation::Refused {
            step: text,
            refusal,
        })?;
    }
    Ok(())
}

/// An address is bound only while the set that rejects its unknown ports has it.
fn check_address(step: &Step, state: &State) -> Result<(), Violation> {
    match step {
        Step::AddAddress { address } => {
            let set = SetId::IpvsIps.name(IpFamily::of(*address));
            let entry = SetEntry::Ip(*address);
            if state
                .sets
                .get(&set)
                .is_some_and(|set| set.entries.contains(&entry))
            {
                Ok(())
            } else {
                Err(Violation::AddressWithoutEntry(step.to_string()))
            }
        }
        Step::DeleteEntry {
            set,
            entry: SetEntry::Ip(address),
        } => {
            let rejects = *set == SetId::IpvsIps.name(IpFamily::of(*address));
            if rejects && state.addresses.contains(address) {
                Err(Violation::EntryBeforeAddress(step.to_string()))
            } else {
                Ok(())
            }
        }
        _ => Ok(()),
    }
}
