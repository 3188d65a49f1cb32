//! Which room versions are offered. The only file that names versions; everybody else asks the
//! rules.

use ruma::{RoomVersionId, room_version_rules::RoomVersionRules};

/// The version of rooms that are created without asking for one
/// ([spec](https://spec.matrix.org/v1.19/rooms/#complete-list-of-room-versions)).
pub const DEFAULT: RoomVersionId = RoomVersionId::V12;

const SUPPORTED: [RoomVersionId; 12] = [
    RoomVersionId::V1,
    RoomVersionId::V2,
    RoomVersionId::V3,
    RoomVersionId::V4,
    RoomVersionId::V5,
    RoomVersionId::V6,
    RoomVersionId::V7,
    RoomVersionId::V8,
    RoomVersionId::V9,
    RoomVersionId::V10,
    RoomVersionId::V11,
    RoomVersionId::V12,
];

/// The rules of a room version, or `None` if rooms of that version cannot be taken part in.
#[must_use]
pub fn rules(version: &RoomVersionId) -> Option<RoomVersionRules> {
    SUPPORTED
        .contains(version)
        .then(|| version.rules())
        .flatten()
}

/// Whether events of two versions look alike, so that one cannot be told from the other.
#[must_use]
pub fn same_format(one: &RoomVersionId, other: &RoomVersionId) -> bool {
    let format = |version| {
        rules(version).map(|rules| (rules.event_id_format, rules.events_reference_format))
    };
    format(one).is_some_and(|is| Some(is) == format(other))
}

/// The versions for which [`rules`] has an answer, oldest first.
pub fn supported() -> impl Iterator<Item = RoomVersionId> {
    SUPPORTED.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_version_has_rules_and_the_default_is_one_of_them() {
        assert!(supported().all(|version| rules(&version).is_some()));
        assert!(supported().any(|version| version == DEFAULT));
    }

    #[test]
    fn unknown_versions_have_none() {
        assert!(RoomVersionId::try_from("org.example.custom").is_ok_and(|v| rules(&v).is_none()));
    }
}
