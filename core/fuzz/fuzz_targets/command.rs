//! Whatever comes as a command: it is read, or refused with a fault; what was read survives the way over the broker;
//! and a dead letter's outline of the same bytes is made.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taskflow_core::dead_letter::Outline;
use taskflow_core::envelope::{self, parse};

fuzz_target!(|bytes: &[u8]| {
    match parse(bytes) {
        Ok(command) => {
            let again = parse(&command.to_json()).expect("what we write can be read");
            assert_eq!(again, command, "what was read differs from what is written");
        }
        Err(malformed) => {
            assert!(!malformed.faults.is_empty(), "refused without a reason");
            // It is logged and answered: it must be bounded, whatever was sent.
            assert!(malformed.summary().len() < envelope::COMMAND_MAX * 2, "a refusal without an end");
        }
    }
    let _ = Outline::of(bytes);
});
