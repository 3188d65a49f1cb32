//! The difference of auth chains, without the chains.
//!
//! An event is stored after those that allow it, so its number is greater than theirs. A walk that always
//! takes the greatest number has met all that refers to an event before it takes the event, and knows then
//! which states have it in their auth chains. As soon as all states share whatever the walk could still
//! take, they share what is behind that as well.

use std::collections::{BTreeMap, BTreeSet};

use crate::storage::state_map::EventNid;

/// The walk.
#[derive(Debug)]
pub(super) struct Difference {
    /// All states, by their numbers.
    all: BTreeSet<usize>,
    /// The events on which all states agree and that were not taken yet, the greatest number last.
    agreed: Vec<EventNid>,
    /// Events in auth chains that were not taken yet: in those of which states.
    open: BTreeMap<EventNid, BTreeSet<usize>>,
    /// Those of them that not all states are known to have.
    differing: BTreeSet<EventNid>,
    found: Vec<BTreeSet<EventNid>>,
}

impl Difference {
    /// The walk through so many states, which agree on some of their events.
    pub(super) fn new(states: usize, agreed: impl Iterator<Item = EventNid>) -> Self {
        let mut agreed: Vec<_> = agreed.collect();
        agreed.sort_unstable();
        Self {
            all: (0..states).collect(),
            agreed,
            open: BTreeMap::new(),
            differing: BTreeSet::new(),
            found: vec![BTreeSet::new(); states],
        }
    }

    /// Says that an event is in the auth chains of these states.
    pub(super) fn add(&mut self, nid: EventNid, states: &BTreeSet<usize>) {
        let known = self.open.entry(nid).or_default();
        known.extend(states);
        if known.len() < self.all.len() {
            self.differing.insert(nid);
        } else {
            self.differing.remove(&nid);
        }
    }

    /// The next event, and the states in whose auth chains its auth events are, which are to be added; `None`
    /// if the rest is shared.
    pub(super) fn next(&mut self) -> Option<(EventNid, BTreeSet<usize>)> {
        self.differing.first()?;
        let newest = self.open.last_key_value().map(|(nid, _)| *nid);
        if let Some(nid) = self.agreed.pop_if(|nid| Some(*nid) >= newest) {
            return Some((nid, self.all.clone()));
        }
        let (nid, states) = self.open.pop_last()?;
        if self.differing.remove(&nid) {
            for state in &states {
                if let Some(found) = self.found.get_mut(*state) {
                    found.insert(nid);
                }
            }
        }
        Some((nid, states))
    }

    /// Events on which all agree and that the walk is about to take, as far as that is known.
    pub(super) fn ahead(&self, most: usize) -> impl Iterator<Item = EventNid> {
        let end = self.differing.first().copied();
        let next = self.agreed.iter().rev().take(most).copied();
        next.take_while(move |nid| end.is_some_and(|end| *nid > end))
    }

    /// For each state, the events of its auth chain that are not in all the others'.
    pub(super) fn found(self) -> Vec<BTreeSet<EventNid>> {
        self.found
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    /// Of each event, which earlier ones allow it.
    type Graph = Vec<BTreeSet<usize>>;

    fn nid(index: usize) -> EventNid {
        EventNid(i64::try_from(index).unwrap())
    }

    fn chain(graph: &Graph, state: &BTreeSet<usize>) -> BTreeSet<EventNid> {
        let mut open: Vec<_> = state.iter().flat_map(|event| &graph[*event]).collect();
        let mut chain = BTreeSet::new();
        while let Some(event) = open.pop() {
            if chain.insert(nid(*event)) {
                open.extend(&graph[*event]);
            }
        }
        chain
    }

    /// Numbers, of which those count that are below another one.
    fn numbers() -> impl Strategy<Value = BTreeSet<usize>> {
        proptest::collection::btree_set(0_usize..40, 0..6)
    }

    fn graph() -> impl Strategy<Value = Graph> {
        proptest::collection::vec(numbers(), 1..40).prop_map(|events| {
            let below = |(event, auth): (usize, BTreeSet<usize>)| {
                auth.into_iter().filter(|auth| *auth < event).collect()
            };
            events.into_iter().enumerate().map(below).collect()
        })
    }

    fn states() -> impl Strategy<Value = Vec<BTreeSet<usize>>> {
        proptest::collection::vec(numbers(), 2..5)
    }

    #[test]
    fn what_is_shared_is_not_walked_through_however_long_it_is() {
        let long = 100_000;
        let mut graph: Graph = vec![BTreeSet::new()];
        graph.extend((1..long).map(|event| BTreeSet::from([event - 1])));
        // A fork on top.
        graph.extend([BTreeSet::from([long - 1]), BTreeSet::from([long - 1])]);
        let states = [BTreeSet::from([long]), BTreeSet::from([long + 1])];
        let mut walk = Difference::new(2, std::iter::empty());
        for (number, state) in states.iter().enumerate() {
            for auth in state.iter().flat_map(|event| &graph[*event]) {
                walk.add(nid(*auth), &BTreeSet::from([number]));
            }
        }
        let mut steps = 0;
        while let Some((event, states)) = walk.next() {
            steps += 1;
            for auth in &graph[usize::try_from(event.0).unwrap()] {
                walk.add(nid(*auth), &states);
            }
        }
        assert!(steps < 5, "{steps}");
        assert!(walk.found().iter().all(BTreeSet::is_empty));
        // The control: so much is what the definition asks for.
        assert_eq!(chain(&graph, &states[0]).len(), long);
    }

    proptest! {
        #[test]
        fn what_is_found_is_the_difference_of_the_whole_chains(
            graph in graph(),
            states in states(),
        ) {
            let index = |number: &usize| number % graph.len();
            let states: Vec<BTreeSet<usize>> =
                states.iter().map(|state| state.iter().map(index).collect()).collect();
            let mut agreed = states[0].clone();
            agreed.retain(|event| states.iter().all(|state| state.contains(event)));

            let mut walk = Difference::new(states.len(), agreed.iter().map(|event| nid(*event)));
            for (number, state) in states.iter().enumerate() {
                for auth in state.difference(&agreed).flat_map(|event| &graph[*event]) {
                    walk.add(nid(*auth), &BTreeSet::from([number]));
                }
            }
            while let Some((event, states)) = walk.next() {
                for auth in &graph[usize::try_from(event.0).unwrap()] {
                    walk.add(nid(*auth), &states);
                }
            }

            let chains: Vec<_> = states.iter().map(|state| chain(&graph, state)).collect();
            let differs = |event: &EventNid| !chains.iter().all(|chain| chain.contains(event));
            let expected: Vec<BTreeSet<_>> = chains
                .iter()
                .map(|chain| chain.iter().copied().filter(differs).collect())
                .collect();
            prop_assert_eq!(walk.found(), expected);
        }
    }
}
