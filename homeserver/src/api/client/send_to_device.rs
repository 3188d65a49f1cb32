//! [Messages between devices](https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging).

use std::collections::BTreeMap;

use axum::extract::State;
use ruma::api::{
    client::to_device::send_event_to_device::v3,
    error::{ErrorKind, LimitExceededErrorData},
};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::to_device::{ToDevice, ToDeviceError},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.add::<v3::Request, _, _>(send_event_to_device)
}

impl From<ToDeviceError> for MatrixError {
    fn from(error: ToDeviceError) -> Self {
        match error {
            ToDeviceError::TooLarge => Self::new(
                http::StatusCode::PAYLOAD_TOO_LARGE,
                ErrorKind::TooLarge,
                "A message is too large",
            ),
            ToDeviceError::ForeignSender => {
                Self::forbidden("The sender is a user of another server")
            }
            ToDeviceError::Full => Self::new(
                http::StatusCode::TOO_MANY_REQUESTS,
                ErrorKind::LimitExceeded(LimitExceededErrorData::new()),
                "Too many messages wait for a device",
            ),
            ToDeviceError::Storage(error) => error.into(),
        }
    }
}

/// `PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId}`
async fn send_event_to_device(
    State(to_device): State<ToDevice>,
    Authenticated { requester, body }: Authenticated<v3::Request>,
) -> Result<Matrix<v3::Response>, MatrixError> {
    let v3::Request {
        event_type,
        txn_id,
        messages,
        ..
    } = body;
    let contents = messages.values().flat_map(BTreeMap::values);
    if contents
        .into_iter()
        .any(|content| !content.json().get().starts_with('{'))
    {
        return Err(MatrixError::bad_json(
            "The content of a message is not an object",
        ));
    }
    to_device
        .send(&requester, &event_type, &txn_id, messages)
        .await?;
    Ok(Matrix(v3::Response::new()))
}
