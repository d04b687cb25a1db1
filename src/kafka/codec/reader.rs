//! Reads the protocol's primitive types from a response.
//!
//! Source: <https://kafka.apache.org/protocol#protocol_types> and KIP-482 (flexible versions: compact lengths and
//! tagged fields). Invariant: no length found in the bytes sizes an allocation; collections grow as items are read.

use bytes::{Buf, Bytes};

/// What is wrong with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// The unread rest of a response.
pub struct Reader {
    rest: Bytes,
    /// The version is a flexible one: lengths are compact, structures end in tagged fields.
    flexible: bool,
}

const CUT: Malformed = Malformed("cut short");

impl Reader {
    pub fn new(bytes: Bytes, flexible: bool) -> Self {
        Reader { rest: bytes, flexible }
    }

    pub fn i16(&mut self) -> Result<i16, Malformed> {
        self.fixed().map(i16::from_be_bytes)
    }

    pub fn i32(&mut self) -> Result<i32, Malformed> {
        self.fixed().map(i32::from_be_bytes)
    }

    pub fn i64(&mut self) -> Result<i64, Malformed> {
        self.fixed().map(i64::from_be_bytes)
    }

    /// Reads past fields that nobody needs.
    pub fn skip(&mut self, bytes: usize) -> Result<(), Malformed> {
        self.take(bytes).map(drop)
    }

    pub fn array<T>(
        &mut self,
        item: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        self.nullable_array(item)?.ok_or(Malformed("an array is null"))
    }

    pub fn nullable_array<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<Vec<T>>, Malformed> {
        let length = if self.flexible { self.compact_length()? } else { length(i64::from(self.i32()?))? };
        let Some(length) = length else { return Ok(None) };
        let mut items = Vec::new();
        for _ in 0..length {
            items.push(item(self)?);
        }
        Ok(Some(items))
    }

    pub fn nullable_string(&mut self) -> Result<Option<String>, Malformed> {
        let length = if self.flexible { self.compact_length()? } else { length(i64::from(self.i16()?))? };
        let Some(length) = length else { return Ok(None) };
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| Malformed("a string is not UTF-8"))?;
        Ok(Some(text.to_owned()))
    }

    pub fn string(&mut self) -> Result<String, Malformed> {
        self.nullable_string()?.ok_or(Malformed("a string is null"))
    }

    /// A slice of the response, not a copy. Null is empty.
    pub fn bytes(&mut self) -> Result<Bytes, Malformed> {
        let length = if self.flexible { self.compact_length()? } else { length(i64::from(self.i32()?))? };
        self.take(length.unwrap_or(0))
    }

    /// The tagged fields at the end of a structure in flexible versions; this client needs none of them.
    pub fn tags(&mut self) -> Result<(), Malformed> {
        if self.flexible {
            for _ in 0..self.unsigned_varint()? {
                self.unsigned_varint()?;
                let length = self.unsigned_varint()?;
                self.take(length as usize)?;
            }
        }
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Flexible lengths are one more than the length, and 0 is null.
    fn compact_length(&mut self) -> Result<Option<usize>, Malformed> {
        Ok(self.unsigned_varint()?.checked_sub(1).map(|length| length as usize))
    }

    fn unsigned_varint(&mut self) -> Result<u32, Malformed> {
        let mut value = 0u64;
        for index in 0..5 {
            let [byte] = self.fixed::<1>()?;
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return u32::try_from(value).map_err(|_| Malformed("a varint exceeds 32 bits"));
            }
        }
        Err(Malformed("a varint exceeds 32 bits"))
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let field = *self.rest.first_chunk().ok_or(CUT)?;
        self.rest.advance(N);
        Ok(field)
    }

    fn take(&mut self, bytes: usize) -> Result<Bytes, Malformed> {
        if bytes > self.rest.len() { Err(CUT) } else { Ok(self.rest.split_to(bytes)) }
    }
}

fn length(announced: i64) -> Result<Option<usize>, Malformed> {
    match announced {
        -1 => Ok(None),
        length => usize::try_from(length).map(Some).map_err(|_| Malformed("a length is negative")),
    }
}
