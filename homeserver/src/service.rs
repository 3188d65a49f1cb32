//! The rules. Services form a line: each holds only services above it in this list, and none of them all.

pub(crate) mod account_data;
pub(crate) mod accounts;
pub(crate) mod admission;
pub(crate) mod device_lists;
pub(crate) mod devices;
pub(crate) mod e2e_keys;
pub(crate) mod events;
pub(crate) mod federation;
pub(crate) mod filter;
pub(crate) mod heads;
pub(crate) mod incoming;
pub(crate) mod membership;
pub(crate) mod profiles;
pub(crate) mod push_rules;
pub(crate) mod receipts;
pub(crate) mod rooms;
pub(crate) mod server_acl;
pub(crate) mod server_keys;
pub(crate) mod shared_history;
pub(crate) mod sync;
pub(crate) mod timeline;
pub(crate) mod to_device;
pub(crate) mod transactions;
pub(crate) mod typing;
pub(crate) mod uia;
pub(crate) mod visibility;
