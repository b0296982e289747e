//! Texts that strangers send in headers and paths.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taskflow_core::api_key;
use taskflow_core::envelope::is_traceparent;
use taskflow_core::stream::{About, Cursor, Place};

fuzz_target!(|bytes: &[u8]| {
    let _ = About::read(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(place) = text.parse::<Place>() {
        assert_eq!(place.to_string().parse::<Place>(), Ok(place));
    }
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string().parse::<Cursor>().ok(), Some(cursor));
    }
    let _ = is_traceparent(text);
    let _ = api_key::id_of(text);
});
