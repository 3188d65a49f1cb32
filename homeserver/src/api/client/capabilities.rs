//! [Capabilities negotiation](https://spec.matrix.org/v1.19/client-server-api/#capabilities-negotiation).

use axum::extract::State;
use ruma::api::client::discovery::get_capabilities::v3::{
    self, Capabilities, GetLoginTokenCapability, ProfileFieldsCapability, RoomVersionStability,
    RoomVersionsCapability, ThirdPartyIdChangesCapability,
};
use serde_json::json;
use sotto_federation::room::version;

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Plain},
    },
    service::{moderation::Moderation, rooms::Rooms},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.add::<v3::Request, _, _>(get_capabilities)
}

/// `GET /_matrix/client/v3/capabilities`
async fn get_capabilities(
    State(moderation): State<Moderation>,
    State(rooms): State<Rooms>,
    request: Authenticated<v3::Request>,
) -> Result<Plain, MatrixError> {
    let mut capabilities = Capabilities::new();
    let available = version::supported()
        .map(|v| (v, RoomVersionStability::Stable))
        .collect();
    capabilities.room_versions =
        RoomVersionsCapability::new(rooms.default_version().clone(), available);
    capabilities.thirdparty_id_changes = ThirdPartyIdChangesCapability::new(true);
    capabilities.get_login_token = GetLoginTokenCapability::new(true);
    if moderation
        .is_administrator(&request.requester.user_id)
        .await?
    {
        capabilities.account_moderation.suspend = true;
        capabilities.account_moderation.lock = true;
    }
    capabilities.profile_fields = Some(ProfileFieldsCapability::new(true));
    let capabilities = serde_json::to_value(&capabilities);
    let mut capabilities = capabilities.map_err(|error| MatrixError::internal(&error))?;
    // ruma leaves out what is so by default, but clients look for it.
    capabilities["m.change_password"] = json!({ "enabled": true });
    Ok(Plain(json!({ "capabilities": capabilities })))
}
