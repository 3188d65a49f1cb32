//! Verification, recovery and key files.

use std::time::Duration;

use ruma::{OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::{Value, json};
use sotto_client::crypto::{IdentityState, Secret, Verification, VerificationPhase};
use tokio::time;

use super::{Answer, Failure, POLL, Person};

/// How long the steps of a verification may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the client is asked to do.
#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(crate) enum Request {
    ExportKeys {
        passphrase: String,
    },
    ImportKeys {
        file: String,
        passphrase: String,
    },
    SetUpRecovery {},
    Recover {
        key: String,
    },
    AskVerification {
        room_id: OwnedRoomId,
        user_id: OwnedUserId,
    },
    AcceptVerification {
        user_id: OwnedUserId,
    },
    /// Tells what the person sees.
    Compare {
        user_id: OwnedUserId,
        start: bool,
    },
    /// The person says that it is the same.
    Confirm {
        user_id: OwnedUserId,
    },
    IsVerified {
        user_id: OwnedUserId,
    },
}

impl Person {
    pub(crate) async fn trust(&self, request: Request) -> Answer {
        let client = self.client()?;
        let machine = client.machine()?;
        match request {
            Request::ExportKeys { passphrase } => {
                let file = machine.export_room_keys(&Secret::new(passphrase)).await?;
                Ok(json!({ "file": file }))
            }
            Request::ImportKeys { file, passphrase } => {
                let passphrase = Secret::new(passphrase);
                machine.import_room_keys(&file, &passphrase).await?;
                Ok(json!({}))
            }
            Request::SetUpRecovery {} => {
                let key = client.enable_recovery(None).await?;
                Ok(json!({ "key": key.expose() }))
            }
            Request::Recover { key } => {
                client.recover(&Secret::new(key)).await?;
                let verified = machine.is_cross_signed().await?;
                Ok(json!({ "verified": verified }))
            }
            Request::AskVerification { room_id, user_id } => {
                client.room(&room_id).request_verification(&user_id).await?;
                Ok(json!({}))
            }
            Request::AcceptVerification { user_id } => {
                use VerificationPhase::Asked;
                let asked = self.verification(&user_id, |phase| *phase == Asked).await?;
                client.accept_verification(&asked.id).await?;
                Ok(json!({}))
            }
            Request::Compare { user_id, start } => self.compare(&user_id, start).await,
            Request::Confirm { user_id } => {
                use VerificationPhase::{Compare, Done};
                let is_shown = |phase: &VerificationPhase| matches!(phase, Compare(_));
                let shown = self.verification(&user_id, is_shown).await?;
                client.confirm_sas(&shown.id).await?;
                self.verification(&user_id, |phase| *phase == Done).await?;
                Ok(json!({}))
            }
            Request::IsVerified { user_id } => {
                let state = client.identity_state(&user_id).await?;
                Ok(json!({ "verified": state == IdentityState::Verified }))
            }
        }
    }

    async fn compare(&self, user_id: &OwnedUserId, start: bool) -> Answer {
        use VerificationPhase::{Compare, Ready};
        if start {
            let ready = self.verification(user_id, |phase| *phase == Ready).await?;
            self.client()?.start_sas(&ready.id).await?;
        }
        let is_shown = |phase: &VerificationPhase| matches!(phase, Compare(_));
        let shown = self.verification(user_id, is_shown).await?;
        let Compare(short) = shown.phase else {
            return Err("nothing is shown".into());
        };
        let names: Vec<&str> = short.emoji.iter().map(|emoji| emoji.name).collect();
        Ok(json!({ "emoji": names }) as Value)
    }

    /// Waits until the latest verification of somebody is in a phase.
    async fn verification(
        &self,
        user_id: &OwnedUserId,
        is_it: impl Fn(&VerificationPhase) -> bool,
    ) -> Result<Verification, Failure> {
        let deadline = time::Instant::now() + PATIENCE;
        loop {
            let all = self.client()?.verifications().await?;
            let mut all = all.into_iter().filter(|known| known.user_id == *user_id);
            if let Some(found) = all.find(|known| is_it(&known.phase)) {
                return Ok(found);
            }
            if time::Instant::now() > deadline {
                return Err("the verification does not go on".into());
            }
            time::sleep(POLL).await;
        }
    }
}
