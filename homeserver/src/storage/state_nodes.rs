//! `state_nodes` and `state_keys`: room states, loaded level by level and kept in memory.
//!
//! Nodes and keys never change, so their caches are never invalidated.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use quick_cache::sync::Cache;
use ruma::events::StateEventType;
use sha2::{Digest, Sha256};
use sqlx::Row;

use super::{
    Families, Storage, StorageError, dialect,
    state_map::{self, Changed, Differs, EventNid, Missing, Node, NodeId, Nodes, StateKeyId},
};

/// How many nodes stay in memory; a node has a few hundred bytes.
const CACHED_NODES: usize = 50_000;
/// How many (type, state key) pairs stay in memory.
const CACHED_KEYS: usize = 50_000;

/// Room states.
#[derive(Debug)]
pub(crate) struct StateNodes {
    nodes: Cache<NodeId, Arc<Node>>,
    keys: Cache<StateKeyId, Arc<StatePair>>,
    secret: String,
    empty: (NodeId, Arc<Node>),
}

/// A type and a state key.
pub(crate) type StatePair = (StateEventType, String);

/// Nodes that one operation has at hand: the shared cache, and what it loaded itself (which the cache may
/// already have dropped again).
struct AtHand<'a> {
    cache: &'a Cache<NodeId, Arc<Node>>,
    empty: &'a (NodeId, Arc<Node>),
    loaded: HashMap<NodeId, Arc<Node>>,
}

impl Nodes for AtHand<'_> {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        if id == self.empty.0 {
            return Some(self.empty.1.clone());
        }
        self.loaded
            .get(&id)
            .cloned()
            .or_else(|| self.cache.get(&id))
    }
}

impl StateNodes {
    pub(super) fn new(secret: String) -> Self {
        let (root, node) = state_map::empty();
        Self {
            nodes: Cache::new(CACHED_NODES),
            keys: Cache::new(CACHED_KEYS),
            secret,
            empty: (root, Arc::new(node)),
        }
    }

    /// The number of a (type, state key) pair: a hash under a secret of this database, so that nobody
    /// can choose two pairs that collide.
    pub(crate) fn key(&self, event_type: &StateEventType, state_key: &str) -> StateKeyId {
        let mut hash = Sha256::new();
        hash.update(self.secret.as_bytes());
        hash.update(pair(event_type, state_key));
        let digest = hash.finalize();
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        StateKeyId(u64::from_be_bytes(id))
    }

    /// Keeps nodes in memory that are about to be written.
    pub(crate) fn remember(&self, nodes: &[(NodeId, Arc<Node>)]) {
        for (id, node) in nodes {
            self.nodes.insert(*id, node.clone());
        }
    }
}

/// The stored form of a (type, state key) pair. 0xFF is in no UTF-8 text.
pub(crate) fn pair(event_type: &StateEventType, state_key: &str) -> Vec<u8> {
    let mut bytes = event_type.to_string().into_bytes();
    bytes.push(0xff);
    bytes.extend_from_slice(state_key.as_bytes());
    bytes
}

impl Storage {
    /// The event of one key of a state.
    pub(crate) async fn state_get(
        &self,
        state: NodeId,
        event_type: &StateEventType,
        state_key: &str,
    ) -> Result<Option<EventNid>, StorageError> {
        let key = self.states().key(event_type, state_key);
        self.with_nodes(|nodes| state_map::get(nodes, state, key))
            .await
    }

    /// The events of keys of many states: a trip per level for all of them together.
    pub(crate) async fn state_gets(
        &self,
        keys: &[(NodeId, StateKeyId)],
    ) -> Result<Vec<EventNid>, StorageError> {
        let get = |nodes: &AtHand<'_>| {
            let found = keys
                .iter()
                .map(|(state, key)| state_map::get(nodes, *state, *key));
            let found = state_map::all(found)?;
            Ok(found.into_iter().flatten().collect())
        };
        self.with_nodes(get).await
    }

    /// All of a state.
    pub(crate) async fn state_entries(
        &self,
        state: NodeId,
    ) -> Result<BTreeMap<StateKeyId, EventNid>, StorageError> {
        self.with_nodes(|nodes| state_map::entries(nodes, state))
            .await
    }

    /// All of many states: a trip per level for all of them together.
    pub(crate) async fn states_entries(
        &self,
        states: &[NodeId],
    ) -> Result<Vec<BTreeMap<StateKeyId, EventNid>>, StorageError> {
        let entries = |nodes: &AtHand<'_>| {
            let found = states.iter().map(|state| state_map::entries(nodes, *state));
            state_map::all(found)
        };
        self.with_nodes(entries).await
    }

    /// How two states differ.
    pub(crate) async fn state_difference(
        &self,
        before: NodeId,
        after: NodeId,
    ) -> Result<Vec<Differs>, StorageError> {
        if before == after {
            return Ok(Vec::new());
        }
        self.with_nodes(|nodes| state_map::difference(nodes, before, after))
            .await
    }

    /// A state with changes. The nodes are written by the append that uses them.
    pub(crate) async fn state_change(
        &self,
        state: NodeId,
        changes: &BTreeMap<StateKeyId, Option<EventNid>>,
    ) -> Result<Changed, StorageError> {
        let after = self
            .with_nodes(|nodes| state_map::change(nodes, state, changes))
            .await?;
        self.states().remember(&after.nodes);
        Ok(after)
    }

    /// What keys stand for.
    pub(crate) async fn state_pairs(
        &self,
        ids: &[StateKeyId],
    ) -> Result<BTreeMap<StateKeyId, Arc<StatePair>>, StorageError> {
        let cache = &self.states().keys;
        let mut found = BTreeMap::new();
        let mut missing = Vec::new();
        for id in ids {
            match cache.get(id) {
                Some(pair) => {
                    found.insert(*id, pair);
                }
                None => missing.push(*id),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        let mut reader = self.read().await?;
        let sql = |list| format!("SELECT id, pair FROM state_keys WHERE id IN ({list})");
        let query = |list| dialect::query(sql(list));
        let rows = dialect::rows_for(reader.connection(), &missing, 1, query, |query, id| {
            query.bind(id.0.cast_signed())
        });
        for row in rows.await? {
            let id = StateKeyId(row.try_get::<i64, _>(0)?.cast_unsigned());
            let bytes: Vec<u8> = row.try_get(1)?;
            let wrong = || StorageError::inconsistent("state_keys", "pair", &format!("{id:?}"));
            let at = bytes
                .iter()
                .position(|byte| *byte == 0xff)
                .ok_or_else(wrong)?;
            let (event_type, state_key) = bytes.split_at(at);
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| wrong());
            let pair = Arc::new((text(event_type)?.into(), text(&state_key[1..])?));
            cache.insert(id, pair.clone());
            found.insert(id, pair);
        }
        Ok(found)
    }

    /// Runs a pure operation; loads what it misses, one trip per level of the trie, until it misses
    /// nothing.
    async fn with_nodes<T>(
        &self,
        operation: impl Fn(&AtHand<'_>) -> Result<T, Missing>,
    ) -> Result<T, StorageError> {
        let cache = &self.states().nodes;
        let mut at_hand = AtHand {
            cache,
            empty: &self.states().empty,
            loaded: HashMap::new(),
        };
        loop {
            match operation(&at_hand) {
                Ok(value) => return Ok(value),
                Err(Missing(ids)) => {
                    let nodes = self.load_nodes(&ids).await?;
                    if let Some(lost) = ids.iter().find(|id| !nodes.contains_key(*id)) {
                        let row = format!("{lost:?}");
                        return Err(StorageError::inconsistent("state_nodes", "id", &row));
                    }
                    for (id, node) in &nodes {
                        cache.insert(*id, node.clone());
                    }
                    at_hand.loaded.extend(nodes);
                }
            }
        }
    }

    async fn load_nodes(
        &self,
        ids: &BTreeSet<NodeId>,
    ) -> Result<HashMap<NodeId, Arc<Node>>, StorageError> {
        let ids: Vec<_> = ids.iter().copied().collect();
        let mut found = HashMap::with_capacity(ids.len());
        let mut reader = self.read().await?;
        let sql = |list| format!("SELECT id, node FROM state_nodes WHERE id IN ({list})");
        let query = |list| dialect::query(sql(list));
        let rows = dialect::rows_for(reader.connection(), &ids, 1, query, |query, id| {
            query.bind(id.0.to_vec())
        });
        for row in rows.await? {
            let id: Vec<u8> = row.try_get(0)?;
            let bytes: Vec<u8> = row.try_get(1)?;
            let wrong = || StorageError::inconsistent("state_nodes", "node", "");
            let id = NodeId(id.try_into().map_err(|_| wrong())?);
            found.insert(id, Arc::new(Node::decode(&bytes).ok_or_else(wrong)?));
        }
        Ok(found)
    }
}
