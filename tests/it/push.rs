//! Push rules, counts of what is unread, notifications, and pushers.

mod rules;
mod unread;
