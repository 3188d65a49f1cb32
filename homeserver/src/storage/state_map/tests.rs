#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Counted {
    nodes: HashMap<NodeId, Arc<Node>>,
    reads: std::cell::Cell<usize>,
}

impl Nodes for Counted {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.reads.set(self.reads.get() + 1);
        self.nodes.get(&id).cloned()
    }
}

impl Counted {
    fn apply(&mut self, root: NodeId, changes: &BTreeMap<StateKeyId, Option<EventNid>>) -> Changed {
        let after = change(self, root, changes).unwrap();
        self.nodes.extend(after.nodes.iter().cloned());
        after
    }

    fn start() -> (Self, NodeId) {
        let mut nodes = Self::default();
        let (root, node) = empty();
        nodes.nodes.insert(root, Arc::new(node));
        (nodes, root)
    }
}

fn spread(n: u64) -> StateKeyId {
    StateKeyId(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn members(n: u64) -> BTreeMap<StateKeyId, Option<EventNid>> {
    (0..n)
        .map(|i| (spread(i), Some(EventNid(i.cast_signed()))))
        .collect()
}

#[test]
fn a_change_in_a_room_of_10_000_members_writes_few_nodes() {
    let (mut nodes, root) = Counted::start();
    let big = nodes.apply(root, &members(10_000));
    for member in [0, 17, 4_999, 9_999] {
        let changed = nodes.apply(
            big.root,
            &BTreeMap::from([(spread(member), Some(EventNid(77_777)))]),
        );
        let bytes: usize = changed
            .nodes
            .iter()
            .map(|(_, node)| node.encode().len())
            .sum();
        assert!(changed.nodes.len() <= 5, "{} nodes", changed.nodes.len());
        assert!(bytes <= 1_500, "{bytes} bytes");
        nodes.reads.set(0);
        let found = difference(&nodes, big.root, changed.root).unwrap();
        assert_eq!(found.len(), 1);
        assert!(nodes.reads.get() <= 12, "{} reads", nodes.reads.get());
    }
}

#[test]
fn what_is_missing_is_named_level_by_level() {
    let (mut nodes, root) = Counted::start();
    let big = nodes.apply(root, &members(1_000));
    let mut known: HashMap<NodeId, Arc<Node>> = HashMap::new();
    let mut trips = 0;
    while let Err(Missing(ids)) = entries(&known, big.root) {
        trips += 1;
        known.extend(ids.into_iter().map(|id| (id, nodes.nodes[&id].clone())));
    }
    assert!(trips <= 4, "{trips} trips");
    assert_eq!(entries(&known, big.root).unwrap().len(), 1_000);
}

fn key() -> impl Strategy<Value = StateKeyId> {
    // Few distinct high bits, so that leaves split and merge deep in the trie.
    (0_u64..4, 0_u64..40).prop_map(|(high, low)| StateKeyId((high << 62) | (low << 20)))
}

proptest! {
    #[test]
    fn it_is_a_btree_map(steps in prop::collection::vec(
        prop::collection::btree_map(key(), prop::option::of((0_i64..9).prop_map(EventNid)), 0..20), 1..12,
    )) {
        let (mut nodes, mut root) = Counted::start();
        let mut model: BTreeMap<StateKeyId, EventNid> = BTreeMap::new();
        for changes in steps {
            let (before, old) = (root, model.clone());
            root = nodes.apply(root, &changes).root;
            for (key, nid) in &changes {
                match nid {
                    Some(nid) => model.insert(*key, *nid),
                    None => model.remove(key),
                };
            }
            prop_assert_eq!(&entries(&nodes, root).unwrap(), &model);
            for key in changes.keys() {
                prop_assert_eq!(get(&nodes, root, *key).unwrap(), model.get(key).copied());
            }
            let mut expected = Vec::new();
            compare(&old, &model, &mut expected);
            let mut found = difference(&nodes, before, root).unwrap();
            expected.sort_by_key(|d| d.key);
            found.sort_by_key(|d| d.key);
            prop_assert_eq!(found, expected);
            // The shape depends on the entries alone.
            let (fresh, start) = Counted::start();
            let all = model.iter().map(|(key, nid)| (*key, Some(*nid))).collect();
            prop_assert_eq!(change(&fresh, start, &all).unwrap().root, root);
        }
    }

    #[test]
    fn nodes_survive_their_encoding(count in 0_u64..40) {
        let (nodes, root) = Counted::start();
        for (_, node) in change(&nodes, root, &members(count)).unwrap().nodes {
            prop_assert_eq!(&Node::decode(&node.encode()).unwrap(), &*node);
        }
    }

    #[test]
    fn decoding_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Node::decode(&bytes);
    }
}
