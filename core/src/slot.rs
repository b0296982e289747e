//! The slot of a subject: which of 256 routing keys its commands take.
//!
//! A slot is the subject's last byte, so that it depends on nothing but the subject: not on a ring in a broker's
//! memory, not on the number of partitions. It is part of the public contract.

use uuid::Uuid;

/// How many slots there are; each is bound to one partition queue.
pub const SLOTS: u16 = 256;

/// The slot of a subject.
pub fn of(subject: Uuid) -> u8 {
    subject.as_bytes()[15]
}

/// The routing key of a slot: two lower-case hexadecimal digits.
pub fn routing_key(slot: u8) -> &'static str {
    const KEYS: [[u8; 2]; SLOTS as usize] = keys();
    // Every key is two ASCII digits, so this never falls back.
    std::str::from_utf8(&KEYS[slot as usize]).unwrap_or("00")
}

const fn keys() -> [[u8; 2]; SLOTS as usize] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut keys = [[0; 2]; SLOTS as usize];
    let mut slot = 0;
    while slot < SLOTS as usize {
        keys[slot] = [HEX[slot >> 4], HEX[slot & 15]];
        slot += 1;
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_routing_key_is_the_last_two_digits_of_the_subject() {
        let subject: Uuid = "0189f7a0-0000-7000-8000-0000000000af".parse().unwrap();
        assert_eq!(routing_key(of(subject)), "af");
        for slot in 0..=255 {
            assert_eq!(routing_key(slot), format!("{slot:02x}"));
        }
    }
}
