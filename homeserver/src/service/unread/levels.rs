//! Whom a sender may notify, by the power levels of a room
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#mroompower_levels)).

use ruma::{
    UserId,
    room_version_rules::RoomVersionRules,
    state_res::events::{RoomCreateEvent, RoomPowerLevelsEvent},
};
use sotto_federation::room::pdu::Pdu;

use crate::service::push_rules::Levels;

/// Whom a sender may notify; `None` if the room does not say it in a form that can be read.
pub(super) fn of_sender(
    sender: &UserId,
    create: Option<&Pdu>,
    levels: Option<&Pdu>,
    rules: &RoomVersionRules,
) -> Option<Levels> {
    let rules = &rules.authorization;
    let creators = RoomCreateEvent::new(create?).creators(rules).ok()?;
    let is_creator = creators.contains(sender);
    let Some(levels) = levels.map(RoomPowerLevelsEvent::new) else {
        let sender = match (is_creator, rules.explicitly_privilege_room_creators) {
            (true, true) => None,
            (true, false) => Some(100),
            (false, _) => Some(0),
        };
        return Some(Levels {
            sender,
            needed: std::collections::BTreeMap::new(),
        });
    };
    let power = levels.user_power_level(sender, rules).ok()?;
    let all = is_creator && rules.explicitly_privilege_room_creators;
    let needed = levels.notifications(rules).ok()?.unwrap_or_default();
    Some(Levels {
        sender: (!all).then(|| power.into()),
        needed: needed
            .into_iter()
            .map(|(key, level)| (key, level.into()))
            .collect(),
    })
}
