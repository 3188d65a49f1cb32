//! Tests of the machine: devices that behave, servers and devices that do not, and crashes.

mod accounts;
mod backups;
mod between;
mod conversations;
mod coverage;
mod crashes;
mod device_lists;
mod edits;
mod exceptions;
mod fake;
mod forwarding;
mod history;
mod identities;
mod interleavings;
mod low_order;
mod map;
mod megolm;
mod olm;
mod payloads;
mod qr;
mod rotation;
mod secrets;
mod sharing;
mod state;
mod verification;
