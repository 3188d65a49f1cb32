//! In which order events are placed.

use std::collections::BTreeSet;

use ruma::OwnedEventId;
use sotto_federation::room::pdu::Pdu;

use super::gather::Gathered;

/// The events so that each comes after those that it builds on; otherwise as deep as their makers say, so
/// that branches mingle as they were made.
pub(super) fn order(gathered: &Gathered) -> Vec<OwnedEventId> {
    enum Visit<'a> {
        Enter(&'a OwnedEventId),
        Leave(&'a OwnedEventId),
    }

    let pdu = |id: &OwnedEventId| {
        gathered
            .events
            .get(id)
            .or_else(|| gathered.outliers.get(id))
    };
    let mut seen = BTreeSet::new();
    let mut ordered = Vec::new();
    let all = gathered.outliers.keys().chain(gathered.events.keys());
    let mut roots: Vec<_> = all.collect();
    // The last one is taken first.
    roots
        .sort_by_cached_key(|id| std::cmp::Reverse((pdu(id).map_or(0, Pdu::depth), (*id).clone())));
    let mut stack: Vec<_> = roots.into_iter().map(Visit::Enter).collect();
    while let Some(visit) = stack.pop() {
        match visit {
            Visit::Leave(id) => ordered.push(id.clone()),
            Visit::Enter(id) => {
                if let Some(pdu) = pdu(id)
                    && seen.insert(id)
                {
                    stack.push(Visit::Leave(id));
                    let state = gathered.states.get(id).into_iter().flatten();
                    let prev = pdu
                        .prev_events()
                        .iter()
                        .filter(|_| gathered.events.contains_key(id));
                    let needed = pdu.auth_events().iter().chain(prev).chain(state);
                    stack.extend(needed.map(Visit::Enter));
                }
            }
        }
    }
    ordered
}
