// SPDX-License-Identifier: Apache-2.0
//! Interns what repeats in many objects (namespaces, zones, port names).

use std::collections::BTreeSet;
use std::sync::Arc;

use kpr_core::model::endpoint::Zones;

/// Below this number of entries nothing is dropped.
const MIN_PRUNE: usize = 1024;

/// A pool of shared strings and zones. What no object uses any more is dropped when the
/// pool has doubled.
#[derive(Debug)]
pub(super) struct Interner {
    texts: BTreeSet<Arc<str>>,
    all_zones: BTreeSet<Arc<Zones>>,
    prune_at: usize,
}

impl Default for Interner {
    fn default() -> Self {
        Self {
            texts: BTreeSet::new(),
            all_zones: BTreeSet::new(),
            prune_at: MIN_PRUNE,
        }
    }
}

impl Interner {
    pub(super) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        self.prune();
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }

    pub(super) fn zones<'a>(
        &mut self,
        zone: Option<&str>,
        hints: impl Iterator<Item = &'a str>,
    ) -> Arc<Zones> {
        let zones = Zones {
            zone: zone.map(|zone| self.text(zone)),
            hints: hints.map(|text| self.text(text)).collect(),
        };
        if let Some(known) = self.all_zones.get(&zones) {
            return known.clone();
        }
        let zones = Arc::new(zones);
        self.all_zones.insert(zones.clone());
        zones
    }

    fn prune(&mut self) {
        if self.texts.len() + self.all_zones.len() < self.prune_at {
            return;
        }
        self.all_zones.retain(|zones| Arc::strong_count(zones) > 1);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.prune_at = MIN_PRUNE.max(2 * (self.texts.len() + self.all_zones.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_and_zones_are_one_allocation() {
        let mut interner = Interner::default();
        assert!(Arc::ptr_eq(&interner.text("a"), &interner.text("a")));
        let mut zones = |zone| interner.zones(zone, ["a", "b"].into_iter());
        let (first, second) = (zones(Some("z")), zones(Some("z")));
        assert!(Arc::ptr_eq(&first, &second));
        let expected = Zones {
            zone: Some("z".into()),
            hints: vec!["a".into(), "b".into()],
        };
        assert_eq!((&*first, &zones(None).hints), (&expected, &expected.hints));
    }

    #[test]
    fn what_nobody_uses_is_dropped_in_the_end() {
        let mut interner = Interner::default();
        let kept = interner.text("kept");
        for number in 0..10 * MIN_PRUNE {
            interner.text(&number.to_string());
        }
        assert!(interner.texts.len() <= MIN_PRUNE + 1);
        assert!(Arc::ptr_eq(&kept, &interner.text("kept")));
    }
}
