//! Arrays of words that a file has as bytes: read in one piece, not one by one.

use std::fmt;
use std::ops::Deref;

use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Such an array. In a file it is little-endian.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Words(Box<[u32]>);

impl From<&[u32]> for Words {
    fn from(words: &[u32]) -> Words {
        Words(words.into())
    }
}

impl Deref for Words {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.0
    }
}

impl Serialize for Words {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.iter().flat_map(|word| word.to_le_bytes()).collect();
        serializer.serialize_bytes(&bytes)
    }
}

struct Read;

impl Visitor<'_> for Read {
    type Value = Words;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("words of four bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Words, E> {
        let (words, []) = bytes.as_chunks() else {
            return Err(E::invalid_length(bytes.len(), &self));
        };
        Ok(Words(
            words.iter().map(|&word| u32::from_le_bytes(word)).collect(),
        ))
    }
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Words, D::Error> {
        deserializer.deserialize_bytes(Read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_and_parts_of_words_do_not() {
        for words in [&[][..], &[7], &[0, 0x1234_5678, u32::MAX]] {
            let bytes = postcard::to_stdvec(&Words::from(words)).unwrap();
            assert_eq!(
                postcard::from_bytes::<Words>(&bytes),
                Ok(Words::from(words))
            );
        }
        assert!(postcard::from_bytes::<Words>(&[3, 1, 2, 3]).is_err());
    }
}
