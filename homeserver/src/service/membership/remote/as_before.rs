//! Requests to servers that know the first room versions only: the same event at another place, and an
//! answer with the status before it
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1inviteroomideventid)).

use std::{collections::BTreeMap, fmt::Display};

use ruma::{
    ServerName,
    api::path_builder::{PathBuilder, SinglePath},
};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sotto_federation::{
    client::{ClientError, Limits},
    room::pdu::Pdu,
};

use super::{Remote, RemoteError};

/// Where events were sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Invite,
    SendJoin,
    SendLeave,
}

impl Place {
    fn path(self) -> SinglePath {
        SinglePath::new(match self {
            Self::Invite => "/_matrix/federation/v1/invite/{room_id}/{event_id}",
            Self::SendJoin => "/_matrix/federation/v1/send_join/{room_id}/{event_id}",
            Self::SendLeave => "/_matrix/federation/v1/send_leave/{room_id}/{event_id}",
        })
    }
}

impl Remote {
    /// Sends an event, and reads the answer.
    pub(super) async fn send_as_before<T: DeserializeOwned>(
        &self,
        server: &ServerName,
        place: Place,
        pdu: &Pdu,
        unsigned: Option<Box<RawValue>>,
        limits: Limits,
    ) -> Result<T, RemoteError> {
        let request = request(place, pdu, unsigned)?;
        let client = self.federation.client();
        let sent = client.send_streamed(server, request, limits.request);
        let answer = sent.await?.read(limits.answer).await?;
        if !answer.status().is_success() {
            return Err(ClientError::refused(&answer).into());
        }
        let (_, answer): (u16, T) =
            serde_json::from_slice(answer.body()).map_err(|_| ClientError::MalformedAnswer)?;
        Ok(answer)
    }
}

fn request(
    place: Place,
    pdu: &Pdu,
    unsigned: Option<Box<RawValue>>,
) -> Result<http::Request<Vec<u8>>, ClientError> {
    let parts: [&dyn Display; 2] = [&pdu.room_id(), &pdu.event_id()];
    let url = place
        .path()
        .make_endpoint_url((), "https://destination.invalid", &parts, "");
    let url = url.map_err(|_| ClientError::Unsendable)?;
    let unsendable = |_| ClientError::Unsendable;
    let mut body: BTreeMap<String, Box<RawValue>> =
        serde_json::from_str(pdu.json().get()).map_err(unsendable)?;
    body.extend(unsigned.map(|unsigned| ("unsigned".to_owned(), unsigned)));
    http::Request::put(url)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(serde_json::to_vec(&body).map_err(unsendable)?)
        .map_err(|_| ClientError::Unsendable)
}
