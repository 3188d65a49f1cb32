//! [Reporting content](https://spec.matrix.org/v1.19/client-server-api/#reporting-content).

use axum::extract::State;
use ruma::api::client::{
    reporting::report_user,
    room::{report_content, report_room},
};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::moderation::{Moderation, ReportError},
    storage::reports::Subject,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<report_room::v3::Request, _, _>(report_room)
        .add::<report_content::v3::Request, _, _>(report_content)
        .add::<report_user::v3::Request, _, _>(report_user)
}

impl From<ReportError> for MatrixError {
    fn from(error: ReportError) -> Self {
        match error {
            ReportError::NotFound => Self::not_found("There is nothing of this kind that you see"),
            ReportError::TooLong => Self::invalid_param("The reason is too long"),
            ReportError::Read(error) => error.into(),
            ReportError::Storage(error) => error.into(),
        }
    }
}

/// `POST /_matrix/client/v3/rooms/{roomId}/report`
async fn report_room(
    State(moderation): State<Moderation>,
    Authenticated { requester, body }: Authenticated<report_room::v3::Request>,
) -> Result<Matrix<report_room::v3::Response>, MatrixError> {
    let subject = Subject::Room(body.room_id);
    moderation
        .report(requester.user_id, subject, body.reason)
        .await?;
    Ok(Matrix(report_room::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/report/{eventId}`
async fn report_content(
    State(moderation): State<Moderation>,
    Authenticated { requester, body }: Authenticated<report_content::v3::Request>,
) -> Result<Matrix<report_content::v3::Response>, MatrixError> {
    let subject = Subject::Event(body.room_id, body.event_id);
    let reason = body.reason.unwrap_or_default();
    moderation
        .report(requester.user_id, subject, reason)
        .await?;
    Ok(Matrix(report_content::v3::Response::new()))
}

/// `POST /_matrix/client/v3/users/{userId}/report`
async fn report_user(
    State(moderation): State<Moderation>,
    Authenticated { requester, body }: Authenticated<report_user::v3::Request>,
) -> Result<Matrix<report_user::v3::Response>, MatrixError> {
    let subject = Subject::User(body.user_id);
    moderation
        .report(requester.user_id, subject, body.reason)
        .await?;
    Ok(Matrix(report_user::v3::Response::new()))
}
