//! [Transactions](https://spec.matrix.org/v1.19/server-server-api/#transactions).

use axum::extract::State;
use ruma::api::federation::transactions::send_transaction_message;

use super::authentication::Signed;
use crate::{
    api::{Routes, error::MatrixError, extract::Matrix},
    service::transactions::{Transaction, TransactionError, Transactions},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.add::<send_transaction_message::v1::Request, _, _>(send_transaction_message)
}

impl From<TransactionError> for MatrixError {
    fn from(error: TransactionError) -> Self {
        match error {
            TransactionError::TooLarge => {
                Self::bad_json("A transaction has at most 50 PDUs and 100 EDUs")
            }
            TransactionError::OtherOrigin => {
                Self::forbidden("The transaction says that it comes from another server")
            }
            TransactionError::Storage(error) => error.into(),
        }
    }
}

/// `PUT /_matrix/federation/v1/send/{txnId}`
async fn send_transaction_message(
    State(transactions): State<Transactions>,
    Signed { origin, body }: Signed<send_transaction_message::v1::Request>,
) -> Result<Matrix<send_transaction_message::v1::Response>, MatrixError> {
    let transaction = Transaction {
        origin,
        claimed_origin: body.origin,
        id: body.transaction_id,
        pdus: body.pdus,
        edus: body.edus,
    };
    let outcomes = transactions.receive(transaction).await?;
    Ok(Matrix(send_transaction_message::v1::Response::new(
        outcomes,
    )))
}
