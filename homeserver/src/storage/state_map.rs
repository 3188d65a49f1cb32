//! The state of a room at an event, as a hash-consed persistent map.
//!
//! A map from [`StateKeyId`] to [`EventNid`] is a trie whose nodes are identified by the hash of their
//! content. Equal maps have equal roots, one change writes `O(log n)` nodes, and the difference of two
//! maps is found by walking only the nodes that differ. The shape of the trie depends only on its
//! entries, never on the order in which they came: a subtree of up to [`LEAF_CAPACITY`] entries is one
//! leaf, a larger one is a branch of sixteen.
//!
//! Everything here is pure. A node that is not at hand is reported as [`Missing`]; the caller loads it and
//! asks again ([`super::state_nodes`] does).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use sha2::{Digest, Sha256};

/// The most entries that a leaf holds; one more makes it a branch.
const LEAF_CAPACITY: usize = 16;
/// Bits of the key that one level of branches consumes.
const BITS: u32 = 4;
/// Levels after which all 64 bits of a key are used up.
const MAX_DEPTH: u32 = 64 / BITS;

/// A (type, state key) pair, as the keyed hash that stands for it in this database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StateKeyId(pub(crate) u64);

/// The number that stands for an event in this database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EventNid(pub(crate) i64);

/// The identity of a node, and so, for a root, of a whole state: a hash of its content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(pub(crate) [u8; 16]);

impl std::fmt::Debug for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeId({:032x})", u128::from_be_bytes(self.0))
    }
}

/// One node of the trie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// Entries in ascending order of their keys.
    Leaf(Vec<(StateKeyId, EventNid)>),
    /// Children by slot, ascending, and the number of entries below all of them.
    Branch {
        count: u32,
        children: Vec<(u8, NodeId)>,
    },
}

/// Nodes that are needed for an answer and are not at hand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Missing(pub(crate) BTreeSet<NodeId>);

impl Missing {
    fn one(id: NodeId) -> Self {
        Self(BTreeSet::from([id]))
    }
}

/// Where nodes are looked up.
pub(crate) trait Nodes {
    /// The node, if it is at hand.
    fn node(&self, id: NodeId) -> Option<Arc<Node>>;
}

impl Nodes for HashMap<NodeId, Arc<Node>> {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.get(&id).cloned()
    }
}

/// Nodes that a change made, children before parents, and the root of its result.
#[derive(Clone, Debug)]
pub(crate) struct Changed {
    /// The identity of the new state.
    pub(crate) root: NodeId,
    /// The nodes on the way to what changed.
    pub(crate) nodes: Vec<(NodeId, Arc<Node>)>,
}

/// What one key maps to in two states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Differs {
    /// The key.
    pub(crate) key: StateKeyId,
    /// Its event in the first state.
    pub(crate) before: Option<EventNid>,
    /// Its event in the second state.
    pub(crate) after: Option<EventNid>,
}

impl Node {
    /// The bytes that are stored and hashed.
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Leaf(entries) => {
                let mut bytes = Vec::with_capacity(1 + entries.len() * 16);
                bytes.push(0);
                for (key, nid) in entries {
                    bytes.extend_from_slice(&key.0.to_be_bytes());
                    bytes.extend_from_slice(&nid.0.to_be_bytes());
                }
                bytes
            }
            Self::Branch { count, children } => {
                let mut bytes = Vec::with_capacity(5 + children.len() * 17);
                bytes.push(1);
                bytes.extend_from_slice(&count.to_be_bytes());
                for (slot, child) in children {
                    bytes.push(*slot);
                    bytes.extend_from_slice(&child.0);
                }
                bytes
            }
        }
    }

    /// Reads what [`Node::encode`] wrote; `None` for anything else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        match kind {
            0 => {
                let (chunks, remainder) = rest.as_chunks::<16>();
                let entries = chunks.iter().map(|chunk| {
                    let (key, nid) = chunk.split_at(8);
                    Some((
                        StateKeyId(u64::from_be_bytes(key.try_into().ok()?)),
                        EventNid(i64::from_be_bytes(nid.try_into().ok()?)),
                    ))
                });
                remainder
                    .is_empty()
                    .then(|| entries.collect::<Option<_>>())?
                    .map(Self::Leaf)
            }
            1 => {
                let (count, rest) = rest.split_first_chunk::<4>()?;
                let (chunks, remainder) = rest.as_chunks::<17>();
                let children = chunks.iter().map(|chunk| {
                    let (slot, id) = chunk.split_first()?;
                    Some((*slot, NodeId(id.try_into().ok()?)))
                });
                let children = remainder
                    .is_empty()
                    .then(|| children.collect::<Option<_>>())??;
                Some(Self::Branch {
                    count: u32::from_be_bytes(*count),
                    children,
                })
            }
            _ => None,
        }
    }

    fn id(&self) -> NodeId {
        let digest = Sha256::digest(self.encode());
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        NodeId(id)
    }
}

/// The state with no entries. Its node is never stored: everybody has it at hand.
pub(crate) fn empty() -> (NodeId, Node) {
    let node = Node::Leaf(Vec::new());
    (node.id(), node)
}

/// The event that `key` maps to.
pub(crate) fn get(
    nodes: &impl Nodes,
    root: NodeId,
    key: StateKeyId,
) -> Result<Option<EventNid>, Missing> {
    let mut id = root;
    for depth in 0..=MAX_DEPTH {
        match &*nodes.node(id).ok_or_else(|| Missing::one(id))? {
            Node::Leaf(entries) => {
                let found = entries.binary_search_by_key(&key, |entry| entry.0);
                return Ok(found
                    .ok()
                    .and_then(|index| entries.get(index))
                    .map(|entry| entry.1));
            }
            Node::Branch { children, .. } => match child(children, slot(key, depth)) {
                Some(next) => id = next,
                None => return Ok(None),
            },
        }
    }
    Ok(None)
}

/// All entries. Reports everything that is missing on one level at once, so that loading costs a trip per
/// level and not per node.
pub(crate) fn entries(
    nodes: &impl Nodes,
    root: NodeId,
) -> Result<BTreeMap<StateKeyId, EventNid>, Missing> {
    let mut found = BTreeMap::new();
    let mut missing = BTreeSet::new();
    let mut open = vec![root];
    while let Some(id) = open.pop() {
        match nodes.node(id).as_deref() {
            None => {
                missing.insert(id);
            }
            Some(Node::Leaf(entries)) => found.extend(entries.iter().copied()),
            Some(Node::Branch { children, .. }) => open.extend(children.iter().map(|c| c.1)),
        }
    }
    if missing.is_empty() {
        Ok(found)
    } else {
        Err(Missing(missing))
    }
}

/// The answers of many questions, or all that any of them misses, so that it is loaded together.
pub(crate) fn all<T>(answers: impl Iterator<Item = Result<T, Missing>>) -> Result<Vec<T>, Missing> {
    let mut found = Vec::new();
    let mut missing = BTreeSet::new();
    for answer in answers {
        match answer {
            Ok(answer) => found.push(answer),
            Err(Missing(ids)) => missing.extend(ids),
        }
    }
    if missing.is_empty() {
        Ok(found)
    } else {
        Err(Missing(missing))
    }
}

/// The keys on which two states differ; looks at nothing that they share.
pub(crate) fn difference(
    nodes: &impl Nodes,
    before: NodeId,
    after: NodeId,
) -> Result<Vec<Differs>, Missing> {
    let mut found = Vec::new();
    let mut missing = BTreeSet::new();
    let mut open = vec![(Some(before), Some(after), 0)];
    while let Some((a, b, depth)) = open.pop() {
        if a == b {
            continue;
        }
        let load =
            |id: Option<NodeId>| id.map_or(Ok(None), |id| nodes.node(id).map(Some).ok_or(id));
        match (load(a), load(b)) {
            (Ok(a), Ok(b)) => match (a.as_deref(), b.as_deref()) {
                (
                    Some(Node::Branch { children: a, .. }),
                    Some(Node::Branch { children: b, .. }),
                ) => open.extend((0..16).map(|s| (child(a, s), child(b, s), depth + 1))),
                _ => match (below(nodes, a.as_deref()), below(nodes, b.as_deref())) {
                    (Ok(a), Ok(b)) => compare(&a, &b, &mut found),
                    (a, b) => missing.extend(a.err().into_iter().chain(b.err()).flat_map(|m| m.0)),
                },
            },
            (a, b) => missing.extend(a.err().into_iter().chain(b.err())),
        }
    }
    if missing.is_empty() {
        Ok(found)
    } else {
        Err(Missing(missing))
    }
}

/// The state after `changes`: an event for a key to set, `None` for one to remove.
pub(crate) fn change(
    nodes: &impl Nodes,
    root: NodeId,
    changes: &BTreeMap<StateKeyId, Option<EventNid>>,
) -> Result<Changed, Missing> {
    let mut made = Vec::new();
    let changes: Vec<_> = changes.iter().map(|(key, nid)| (*key, *nid)).collect();
    let (root, _) = change_below(nodes, Some(root), 0, &changes, &mut made)?;
    let root = root.unwrap_or_else(|| keep(Node::Leaf(Vec::new()), &mut made));
    Ok(Changed { root, nodes: made })
}

/// Changes one subtree: the identity of what it became (`None` if nothing is left), and by how many
/// entries it grew. A subtree without changes is not even loaded.
fn change_below(
    nodes: &impl Nodes,
    id: Option<NodeId>,
    depth: u32,
    changes: &[(StateKeyId, Option<EventNid>)],
    made: &mut Vec<(NodeId, Arc<Node>)>,
) -> Result<(Option<NodeId>, i64), Missing> {
    if changes.is_empty() {
        return Ok((id, 0));
    }
    let node = match id {
        Some(id) => nodes.node(id).ok_or_else(|| Missing::one(id))?,
        None => Arc::new(Node::Leaf(Vec::new())),
    };
    match &*node {
        Node::Leaf(before) => {
            let mut entries: BTreeMap<_, _> = before.iter().copied().collect();
            for (key, nid) in changes {
                match nid {
                    Some(nid) => entries.insert(*key, *nid),
                    None => entries.remove(key),
                };
            }
            let grown = size(entries.len()) - size(before.len());
            Ok((build(entries.into_iter().collect(), depth, made), grown))
        }
        Node::Branch { count, children } => {
            let mut after = Vec::with_capacity(16);
            let mut grown = 0;
            for at in 0..16 {
                let here: Vec<_> = changes
                    .iter()
                    .filter(|c| slot(c.0, depth) == at)
                    .copied()
                    .collect();
                let (id, by) = change_below(nodes, child(children, at), depth + 1, &here, made)?;
                after.extend(id.map(|id| (at, id)));
                grown += by;
            }
            Ok((
                settle(nodes, after, i64::from(*count) + grown, made)?,
                grown,
            ))
        }
    }
}

/// A branch, or, when its entries fit into one, the leaf that stands for it.
fn settle(
    nodes: &impl Nodes,
    children: Vec<(u8, NodeId)>,
    count: i64,
    made: &mut Vec<(NodeId, Arc<Node>)>,
) -> Result<Option<NodeId>, Missing> {
    if count > size(LEAF_CAPACITY) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        return Ok(Some(keep(Node::Branch { count, children }, made)));
    }
    if count <= 0 {
        return Ok(None);
    }
    let fresh: HashMap<_, _> = made.iter().cloned().collect();
    let mut merged = BTreeMap::new();
    for (_, id) in children {
        merged.extend(entries(&Both(&fresh, nodes), id)?);
    }
    Ok(Some(keep(Node::Leaf(merged.into_iter().collect()), made)))
}

/// Two sources of nodes, the first asked first.
struct Both<'a, A, B>(&'a A, &'a B);

impl<A: Nodes, B: Nodes> Nodes for Both<'_, A, B> {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.0.node(id).or_else(|| self.1.node(id))
    }
}

/// A subtree from entries in ascending order.
fn build(
    entries: Vec<(StateKeyId, EventNid)>,
    depth: u32,
    made: &mut Vec<(NodeId, Arc<Node>)>,
) -> Option<NodeId> {
    if entries.is_empty() {
        return None;
    }
    if entries.len() <= LEAF_CAPACITY || depth >= MAX_DEPTH {
        return Some(keep(Node::Leaf(entries), made));
    }
    let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    let mut slots: BTreeMap<u8, Vec<_>> = BTreeMap::new();
    for entry in entries {
        slots.entry(slot(entry.0, depth)).or_default().push(entry);
    }
    let children = slots
        .into_iter()
        .filter_map(|(at, below)| build(below, depth + 1, made).map(|id| (at, id)))
        .collect();
    Some(keep(Node::Branch { count, children }, made))
}

fn keep(node: Node, made: &mut Vec<(NodeId, Arc<Node>)>) -> NodeId {
    let id = node.id();
    made.push((id, Arc::new(node)));
    id
}

fn size(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn below(
    nodes: &impl Nodes,
    node: Option<&Node>,
) -> Result<BTreeMap<StateKeyId, EventNid>, Missing> {
    match node {
        None => Ok(BTreeMap::new()),
        Some(Node::Leaf(entries)) => Ok(entries.iter().copied().collect()),
        Some(Node::Branch { children, .. }) => {
            let mut found = BTreeMap::new();
            let mut missing = BTreeSet::new();
            for (_, id) in children {
                match entries(nodes, *id) {
                    Ok(entries) => found.extend(entries),
                    Err(Missing(ids)) => missing.extend(ids),
                }
            }
            if missing.is_empty() {
                Ok(found)
            } else {
                Err(Missing(missing))
            }
        }
    }
}

fn compare(
    before: &BTreeMap<StateKeyId, EventNid>,
    after: &BTreeMap<StateKeyId, EventNid>,
    found: &mut Vec<Differs>,
) {
    for (key, nid) in before {
        let now = after.get(key).copied();
        if now != Some(*nid) {
            found.push(Differs {
                key: *key,
                before: Some(*nid),
                after: now,
            });
        }
    }
    for (key, nid) in after.iter().filter(|(key, _)| !before.contains_key(key)) {
        found.push(Differs {
            key: *key,
            before: None,
            after: Some(*nid),
        });
    }
}

fn child(children: &[(u8, NodeId)], slot: u8) -> Option<NodeId> {
    children
        .iter()
        .find(|child| child.0 == slot)
        .map(|child| child.1)
}

fn slot(key: StateKeyId, depth: u32) -> u8 {
    let shift = 64_u32.saturating_sub(BITS * (depth + 1));
    u8::try_from((key.0 >> shift) & 0xf).unwrap_or(0)
}

#[cfg(test)]
#[path = "state_map/tests.rs"]
mod tests;
