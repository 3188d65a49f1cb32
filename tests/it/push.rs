//! Push rules, counts of what is unread, notifications, and pushers.

mod model;
mod notifications;
mod pushers;
mod rules;
mod storm;
mod unread;
