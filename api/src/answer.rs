//! The form of what is read: JSON with an `etag`, and nothing but the headers if the caller has it already.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use taskflow_core::etag;

use crate::reads::Answer;

const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// The response to a read (RFC 9110, section 13).
pub(crate) fn respond(asked: &HeaderMap, answer: Answer) -> Response {
    // Weak: the same state, whatever a later release adds to its form.
    let etag = format!("W/\"{}\"", answer.etag);
    let mut response = if has_already(asked, &answer.etag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], answer.body).into_response()
    };
    let headers = response.headers_mut();
    if let Ok(etag) = HeaderValue::try_from(etag) {
        headers.insert(header::ETAG, etag);
    }
    headers.insert(X_CACHE, HeaderValue::from_static(if answer.hit { "hit" } else { "miss" }));
    // A client may keep it, and must ask each time whether it still holds.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("authorization"));
    response
}

/// An answer that no cache has.
pub(crate) fn fresh(body: Vec<u8>) -> Answer {
    Answer { etag: etag::of(&body), body: body.into(), hit: false }
}

fn has_already(asked: &HeaderMap, etag: &str) -> bool {
    let tags = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = tags.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|tag| {
        tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"') == etag && tag.ends_with('"')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_known_in_each_of_its_forms() {
        for (value, known) in [
            ("W/\"7\"", true),
            ("\"7\"", true),
            ("\"3\", W/\"7\"", true),
            ("*", true),
            ("\"77\"", false),
            ("7", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::from_static(value))]);
            assert_eq!(has_already(&headers, "7"), known, "{value}");
        }
    }
}
