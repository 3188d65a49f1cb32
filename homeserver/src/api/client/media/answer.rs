//! Sending a file, or a part of it, to a browser that shall not be harmed by it.

use std::ops::Range;

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use ruma::{
    api::client::media::is_safe_inline_content_type,
    http_headers::{ContentDisposition, ContentDispositionType},
};

use crate::{api::error::MatrixError, service::media::Media, storage::media::StoredFile};

/// What a browser may do with a file that it was made to open: next to nothing.
const POLICY: &str = "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; \
                      style-src 'unsafe-inline'; object-src 'self';";

/// What a browser shows by itself can do no harm
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#serving-inline-content)).
pub(crate) fn disposition(file: &StoredFile) -> ContentDisposition {
    let kind = if is_safe_inline_content_type(&file.essence()) {
        ContentDispositionType::Inline
    } else {
        ContentDispositionType::Attachment
    };
    ContentDisposition::new(kind).with_filename(file.file_name.clone())
}

/// Which part of a file is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Whole,
    Of(Range<u64>),
    /// The client has it.
    Unchanged,
    /// There is no such part.
    Outside,
}

pub(super) async fn answer(
    media: &Media,
    file: &StoredFile,
    headers: &HeaderMap,
) -> Result<Response, MatrixError> {
    let size = u64::try_from(file.size).unwrap_or(0);
    // The name of the file in the store: another file has another.
    let tag = format!("\"{}\"", file.name);
    let (status, range) = match part(headers, &tag, size) {
        Part::Whole => (StatusCode::OK, 0..size),
        Part::Of(range) => (StatusCode::PARTIAL_CONTENT, range),
        Part::Unchanged => (StatusCode::NOT_MODIFIED, 0..0),
        Part::Outside => (StatusCode::RANGE_NOT_SATISFIABLE, 0..0),
    };
    let mut response = Response::builder()
        .status(status)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::ETAG, tag)
        .header(header::CONTENT_SECURITY_POLICY, POLICY)
        .header("Cross-Origin-Resource-Policy", "cross-origin")
        .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
        .header(
            header::CACHE_CONTROL,
            "private, max-age=31536000, immutable",
        );
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        response = response.header(header::CONTENT_RANGE, format!("bytes */{size}"));
    } else if status == StatusCode::PARTIAL_CONTENT {
        let part = format!(
            "bytes {}-{}/{size}",
            range.start,
            range.end.saturating_sub(1)
        );
        response = response.header(header::CONTENT_RANGE, part);
    }
    let body = if status.is_success() {
        let content_type = file.content_type.as_deref();
        response = response
            .header(
                header::CONTENT_TYPE,
                content_type.unwrap_or("application/octet-stream"),
            )
            .header(header::CONTENT_LENGTH, range.end - range.start)
            .header(header::CONTENT_DISPOSITION, disposition(file).to_string());
        Body::from_stream(media.open(file, range).await?)
    } else {
        Body::empty()
    };
    response
        .body(body)
        .map_err(|error| MatrixError::internal(&error))
}

fn part(headers: &HeaderMap, tag: &str, size: u64) -> Part {
    let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
    let known = headers.get(header::IF_NONE_MATCH).and_then(text);
    let mut known = known.iter().flat_map(|known| known.split(','));
    if known.any(|known| [tag, "*"].contains(&known.trim().trim_start_matches("W/"))) {
        return Part::Unchanged;
    }
    // The part of another file is of no use.
    let other = headers.get(header::IF_RANGE).is_some_and(|of| of != tag);
    let asked = headers.get(header::RANGE).and_then(text);
    match asked {
        Some(asked) if !other => range(&asked, size),
        _ => Part::Whole,
    }
}

/// One range of bytes; whoever asks for several, or for what is not understood, gets the whole.
fn range(asked: &str, size: u64) -> Part {
    let bytes = asked.strip_prefix("bytes=").map(str::trim);
    let Some((from, to)) = bytes.and_then(|bytes| bytes.split_once('-')) else {
        return Part::Whole;
    };
    let number = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| text.parse().ok())
    };
    let range = match (from, to) {
        ("", last) => number(last)
            .flatten()
            .map(|last: u64| size.saturating_sub(last)..size),
        (from, "") => number(from).flatten().map(|from| from..size),
        (from, to) => number(from)
            .flatten()
            .zip(number(to).flatten())
            .map(|(from, to)| {
                from..u64::min(to, u64::MAX - 1)
                    .saturating_add(1)
                    .min(size)
                    .max(from)
            }),
    };
    match range {
        None => Part::Whole,
        Some(range) if range.start >= range.end => Part::Outside,
        Some(range) => Part::Of(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (asked, expected) in [
            ("bytes=0-0", Part::Of(0..1)),
            ("bytes=2-", Part::Of(2..10)),
            ("bytes=-3", Part::Of(7..10)),
            ("bytes=-30", Part::Of(0..10)),
            ("bytes=5-99999999999999", Part::Of(5..10)),
            ("bytes=10-", Part::Outside),
            ("bytes=-0", Part::Outside),
            ("bytes=3-2", Part::Outside),
            ("bytes=0-1,4-5", Part::Whole),
            ("bytes=x", Part::Whole),
            ("bytes=99999999999999999999999-", Part::Whole),
            ("lines=1-2", Part::Whole),
        ] {
            assert_eq!(range(asked, 10), expected, "{asked}");
        }
    }
}
