//! The client-server API, a file for each chapter.

mod account_management;
mod administrative_contacts;
mod aliases;
mod application_services;
mod capabilities;
mod client_config;
mod devices;
mod discovery;
mod end_to_end_encryption;
mod event_relationships;
mod filtering;
pub(super) mod media;
mod membership;
mod messages;
mod old_sync;
mod openid;
mod presence;
mod profiles;
mod published_rooms;
mod push_notifications;
mod push_rules;
mod reauthentication;
mod receipts;
mod registration;
mod reporting_content;
mod room_creation;
mod room_state;
mod room_upgrades;
mod search;
mod send_to_device;
mod sending;
mod server_administration;
mod server_side_key_backups;
mod session;
mod single_sign_on;
mod spaces;
mod sync;
mod tagging;
mod third_party_networks;
mod thread_subscriptions;
mod typing;
mod user_directory;
mod voip;

use ruma::UserId;

use super::{Routes, error::MatrixError};
use crate::service::accounts::Requester;

/// Adds every endpoint.
pub(super) fn routes(routes: Routes) -> Routes {
    [
        aliases::routes,
        account_management::routes,
        administrative_contacts::routes,
        application_services::routes,
        capabilities::routes,
        client_config::routes,
        devices::routes,
        discovery::routes,
        end_to_end_encryption::routes,
        event_relationships::routes,
        filtering::routes,
        media::routes,
        membership::routes,
        messages::routes,
        old_sync::routes,
        openid::routes,
        presence::routes,
        profiles::routes,
        published_rooms::routes,
        push_notifications::routes,
        push_rules::routes,
        receipts::routes,
        registration::routes,
        reporting_content::routes,
        room_creation::routes,
        room_state::routes,
        room_upgrades::routes,
        search::routes,
        sending::routes,
        server_side_key_backups::routes,
        server_administration::routes,
        session::routes,
        send_to_device::routes,
        single_sign_on::routes,
        spaces::routes,
        sync::routes,
        tagging::routes,
        third_party_networks::routes,
        thread_subscriptions::routes,
        typing::routes,
        user_directory::routes,
        voip::routes,
    ]
    .into_iter()
    .fold(routes, |routes, add| add(routes))
}

/// Refuses what one user asks for another.
fn own(requester: &Requester, user_id: &UserId) -> Result<(), MatrixError> {
    if requester.user_id == user_id {
        Ok(())
    } else {
        Err(MatrixError::forbidden("This belongs to another user"))
    }
}
