//! The tests of whole servers: one binary, a file for each area.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests: a panic is a failed test, and seeds are told"
)]

mod access;
mod accounts;
mod addresses;
mod admin;
mod appservices;
mod chat;
mod client_habits;
mod costs;
mod crash;
mod device_lists;
mod directory;
mod doors;
mod encryption;
mod endpoints;
mod fairness;
mod federation_absence;
mod federation_backfill;
mod federation_egress;
mod federation_fork;
mod federation_hostile;
mod federation_inbound;
mod federation_join;
mod federation_out;
mod federation_pair;
mod federation_partial;
mod federation_partition;
mod federation_policy;
mod federation_redactions;
mod gone_clients;
mod guests;
mod hostile;
mod invite_permission;
mod key_backup;
mod legacy;
mod media;
mod moderation;
mod presence;
mod previews;
mod profiles;
mod push;
mod rate_limits;
mod refusals;
mod relations;
mod restore;
mod sdk;
mod search;
mod shared_secret;
mod sign_on;
mod sliding;
mod spaces;
mod sync;
mod sync_model;
mod thread_subscriptions;
mod tidy;
mod upgrades;
mod user_data;
mod user_directory;
mod versions;
mod visibility;
