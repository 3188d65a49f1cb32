//! Profiles of users of other servers
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1queryprofile)).

use std::{sync::Arc, time::Duration};

use ruma::{
    UserId, api::federation::query::get_profile_information::v1::Request, profile::UserProfile,
};
use sotto_federation::client::Limits;

use super::{LookupError, Profiles};

/// For how long an answer is good, in milliseconds.
const GOOD_FOR: u64 = 60_000;
/// A profile is at most 64 KiB, and people wait for it.
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(10),
    request: Duration::from_secs(20),
    answer: 256 * 1024,
};

/// What a server said of a user; `None` if there is no such user.
#[derive(Clone)]
pub(super) struct Kept {
    profile: Option<Arc<UserProfile>>,
    at: u64,
}

impl Profiles {
    pub(super) async fn remote(&self, user_id: &UserId) -> Result<UserProfile, LookupError> {
        let now: u64 = self.clock.now().0.into();
        let kept = self.kept.get(user_id);
        if let Some(kept) = kept.filter(|kept| now < kept.at + GOOD_FOR) {
            let profile = kept.profile.ok_or(LookupError::Unknown)?;
            return Ok((*profile).clone());
        }
        let request = Request::new(user_id.to_owned());
        let server = user_id.server_name();
        let answer = self.federation.send_within(server, request, LIMITS).await;
        let profile = match answer {
            Ok(answer) => Some(Arc::new(answer.data)),
            Err(error) => match error.matrix().map(|error| error.status_code.as_u16()) {
                Some(404) => None,
                Some(403) => return Err(LookupError::Forbidden),
                _ => return Err(error.into()),
            },
        };
        let kept = Kept {
            profile: profile.clone(),
            at: now,
        };
        self.kept.insert(user_id.to_owned(), kept);
        let profile = profile.ok_or(LookupError::Unknown)?;
        Ok((*profile).clone())
    }
}
