//! Documents one behind the other, as in a `.bson` file: summed up, and cut apart again.

use bytes::{Buf, Bytes, BytesMut};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::manifest::Sum;

/// No document is larger (16 MiB and the room that the server adds).
const LONGEST: usize = (16 << 20) + (16 << 10);

/// Documents counted, with a checksum that does not depend on their order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summing {
    count: u64,
    sum: u128,
}

impl Summing {
    pub fn add(&mut self, document: &[u8]) {
        let digest = Sha256::digest(document);
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        self.count += 1;
        self.sum = self.sum.wrapping_add(u128::from_be_bytes(half));
    }

    /// All of another sum's documents too.
    pub fn join(&mut self, other: Self) {
        self.count += other.count;
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// Without the documents of another sum, all of which are in this one.
    pub fn take_out(&mut self, other: Self) {
        self.count = self.count.saturating_sub(other.count);
        self.sum = self.sum.wrapping_sub(other.sum);
    }

    /// A sum that was written down.
    ///
    /// # Errors
    /// It is none.
    pub fn read(count: u64, digits: &str) -> Result<Self> {
        let sum = u128::from_str_radix(digits, 16)
            .map_err(|_| Error::damaged(format!("{digits:?} is no checksum of documents")))?;
        Ok(Self { count, sum })
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn done(&self) -> Sum {
        Sum { count: self.count, sum: format!("{:032x}", self.sum) }
    }
}

/// Cuts a stream of bytes into documents.
#[derive(Default)]
pub struct Cutter {
    rest: BytesMut,
}

impl Cutter {
    /// Takes bytes and gives the documents that are whole by now.
    ///
    /// # Errors
    /// What comes is no document.
    pub fn cut(&mut self, bytes: &Bytes) -> Result<Vec<Bytes>> {
        self.rest.extend_from_slice(bytes);
        let mut documents = Vec::new();
        while let Some(head) = self.rest.get(..4) {
            let length = head.try_into().map_or(0, i32::from_le_bytes);
            let length = usize::try_from(length).unwrap_or(0);
            if !(5..=LONGEST).contains(&length) {
                return Err(Error::damaged(format!("a document of {length} bytes can't be")));
            }
            if self.rest.len() < length {
                break;
            }
            if self.rest[length - 1] != 0 {
                return Err(Error::damaged("a document does not end where it says"));
            }
            documents.push(self.rest.split_to(length).freeze());
        }
        Ok(documents)
    }

    /// Nothing may be left at the end.
    pub fn end(&self) -> Result<()> {
        if self.rest.has_remaining() {
            return Err(Error::damaged(format!("{} bytes of a document without its end", self.rest.len())));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A document of a text, as bytes.
    fn document(text: &str) -> Vec<u8> {
        let document = bson::doc! { "t": text };
        document.to_vec().unwrap()
    }

    proptest! {
        #[test]
        fn documents_are_cut_where_they_were_put_together(
            texts in prop::collection::vec(".{0,40}", 0..20),
            piece in 1..50_usize,
        ) {
            let documents: Vec<Vec<u8>> = texts.iter().map(|text| document(text)).collect();
            let bytes = documents.concat();
            let mut cutter = Cutter::default();
            let mut found = Vec::new();
            for chunk in bytes.chunks(piece) {
                found.extend(cutter.cut(&Bytes::copy_from_slice(chunk)).unwrap());
            }
            cutter.end().unwrap();
            prop_assert_eq!(&found, &documents);
            // Whatever is missing at the end is noticed.
            if let Some(cut) = bytes.len().checked_sub(1) {
                let mut cutter = Cutter::default();
                let whole = cutter.cut(&Bytes::copy_from_slice(&bytes[..cut])).unwrap();
                prop_assert!(cutter.end().is_err());
                prop_assert_eq!(whole.len(), documents.len() - 1);
            }
        }

        #[test]
        fn the_order_does_not_matter_and_each_document_does(texts in prop::collection::vec(".{0,10}", 1..20)) {
            let sum = |texts: &[String]| {
                let mut sum = Summing::default();
                texts.iter().for_each(|text| sum.add(&document(text)));
                sum
            };
            let mut turned = texts.clone();
            turned.reverse();
            prop_assert_eq!(sum(&texts), sum(&turned));
            // Two parts together, and what they share taken out again.
            let mut both = sum(&texts);
            both.join(sum(&turned));
            both.take_out(sum(&texts));
            prop_assert_eq!(both, sum(&texts));
            let told = both.done();
            prop_assert_eq!(Summing::read(told.count, &told.sum).unwrap(), both);
            turned[0].push('x');
            prop_assert_ne!(sum(&texts), sum(&turned));
        }
    }
}
