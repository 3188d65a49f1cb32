//! [Receipts](https://spec.matrix.org/v1.19/client-server-api/#receipts) and
//! [read markers](https://spec.matrix.org/v1.19/client-server-api/#read-and-unread-markers).

use axum::extract::State;
use ruma::{
    api::client::{
        read_marker::set_read_marker,
        receipt::create_receipt::{self, v3::ReceiptType as Marker},
    },
    events::receipt::{ReceiptThread, ReceiptType},
};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::receipts::{ReceiptError, Receipts},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<create_receipt::v3::Request, _, _>(create_receipt)
        .add::<set_read_marker::v3::Request, _, _>(set_read_marker)
}

impl From<ReceiptError> for MatrixError {
    fn from(error: ReceiptError) -> Self {
        match error {
            ReceiptError::NotJoined => Self::forbidden("You are not in this room"),
            ReceiptError::UnknownEvent => Self::not_found("There is no such event in the room"),
            ReceiptError::BadThread => {
                Self::invalid_param("`thread_id` must be `main` or the id of an event")
            }
            ReceiptError::Storage(error) => error.into(),
        }
    }
}

/// `POST /_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}`
async fn create_receipt(
    State(receipts): State<Receipts>,
    Authenticated { requester, body }: Authenticated<create_receipt::v3::Request>,
) -> Result<Matrix<create_receipt::v3::Response>, MatrixError> {
    let receipt_type = match body.receipt_type {
        Marker::Read => ReceiptType::Read,
        Marker::ReadPrivate => ReceiptType::ReadPrivate,
        Marker::FullyRead if body.thread == ReceiptThread::Unthreaded => {
            receipts
                .set_fully_read(requester.user_id, &body.room_id, body.event_id)
                .await?;
            return Ok(Matrix(create_receipt::v3::Response::new()));
        }
        Marker::FullyRead => {
            return Err(MatrixError::invalid_param(
                "The fully read marker knows no threads",
            ));
        }
        _ => {
            return Err(MatrixError::invalid_param(
                "There is no such type of receipt",
            ));
        }
    };
    let (user_id, room_id) = (&requester.user_id, &body.room_id);
    receipts
        .set(user_id, room_id, receipt_type, &body.event_id, &body.thread)
        .await?;
    Ok(Matrix(create_receipt::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/read_markers`
async fn set_read_marker(
    State(receipts): State<Receipts>,
    Authenticated { requester, body }: Authenticated<set_read_marker::v3::Request>,
) -> Result<Matrix<set_read_marker::v3::Response>, MatrixError> {
    let thread = ReceiptThread::Unthreaded;
    for (receipt_type, event_id) in [
        (ReceiptType::Read, &body.read_receipt),
        (ReceiptType::ReadPrivate, &body.private_read_receipt),
    ] {
        if let Some(event_id) = event_id {
            receipts
                .set(
                    &requester.user_id,
                    &body.room_id,
                    receipt_type,
                    event_id,
                    &thread,
                )
                .await?;
        }
    }
    if let Some(event_id) = body.fully_read {
        receipts
            .set_fully_read(requester.user_id, &body.room_id, event_id)
            .await?;
    }
    Ok(Matrix(set_read_marker::v3::Response::new()))
}
