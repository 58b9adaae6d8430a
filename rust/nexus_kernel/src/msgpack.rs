//! MessagePack, as far as stored records use it.
//!
//! What is written takes the fewest bytes that there are for it; what is read may take any.

use std::fmt;

/// What MessagePack calls an integer: from -2^63 to 2^64 - 1.
pub type Integer = i128;

/// How deep arrays and maps that nobody asked for may lie in one another.
pub const DEEPEST: usize = 1000;

/// An integer that MessagePack has no form for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfRange(pub Integer);

impl fmt::Display for OutOfRange {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} is not within -2^63 to 2^64 - 1", self.0)
    }
}

/// Why bytes cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// They end too early.
    Truncated,
    /// Text that is not UTF-8.
    NotText,
    /// Something else stands where this is wanted.
    Wanted(&'static str),
    /// The one byte that begins nothing.
    Reserved,
    /// Arrays or maps deeper than [`DEEPEST`].
    TooDeep,
    /// So many bytes follow the end.
    Trailing(usize),
}

impl fmt::Display for Malformed {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => write!(to, "the bytes end too early"),
            Self::NotText => write!(to, "the text is not UTF-8"),
            Self::Wanted(what) => write!(to, "no {what} is there"),
            Self::Reserved => write!(to, "0xc1 begins nothing"),
            Self::TooDeep => write!(to, "nested deeper than {DEEPEST} levels"),
            Self::Trailing(bytes) => write!(to, "{bytes} bytes follow the end"),
        }
    }
}

/// What one item begins with; the items of arrays and maps come next.
enum Head<'a> {
    Nil,
    Boolean(bool),
    Integer(Integer),
    Float(f64),
    Text(&'a [u8]),
    Opaque,
    Array(usize),
    Map(usize),
}

/// A number, a text or a truth value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scalar<'a> {
    /// True or false.
    Boolean(bool),
    /// An integer.
    Integer(Integer),
    /// A binary64.
    Float(f64),
    /// Text.
    Text(&'a str),
}

/// Reads items one after another.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// An integer of any width.
    pub fn integer(&mut self) -> Result<Integer, Malformed> {
        match self.head()? {
            Head::Integer(value) => Ok(value),
            _ => Err(Malformed::Wanted("integer")),
        }
    }

    /// A text.
    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        match self.head()? {
            Head::Text(bytes) => as_text(bytes),
            _ => Err(Malformed::Wanted("text")),
        }
    }

    /// A text, or None for nil.
    pub fn text_or_nil(&mut self) -> Result<Option<&'a str>, Malformed> {
        match self.head()? {
            Head::Nil => Ok(None),
            Head::Text(bytes) => as_text(bytes).map(Some),
            _ => Err(Malformed::Wanted("text or nil")),
        }
    }

    /// How many items the array has that begins here.
    pub fn array(&mut self) -> Result<usize, Malformed> {
        match self.head()? {
            Head::Array(count) => Ok(count),
            _ => Err(Malformed::Wanted("array")),
        }
    }

    /// How many pairs the map has that begins here; None for nil.
    pub fn map_or_nil(&mut self) -> Result<Option<usize>, Malformed> {
        match self.head()? {
            Head::Nil => Ok(None),
            Head::Map(count) => Ok(Some(count)),
            _ => Err(Malformed::Wanted("map or nil")),
        }
    }

    /// A number, a text or a truth value.
    pub fn scalar(&mut self) -> Result<Scalar<'a>, Malformed> {
        match self.head()? {
            Head::Boolean(value) => Ok(Scalar::Boolean(value)),
            Head::Integer(value) => Ok(Scalar::Integer(value)),
            Head::Float(value) => Ok(Scalar::Float(value)),
            Head::Text(bytes) => as_text(bytes).map(Scalar::Text),
            _ => Err(Malformed::Wanted("number, text or truth value")),
        }
    }

    /// Go past one item of any kind.
    pub fn skip(&mut self) -> Result<(), Malformed> {
        let mut open = vec![1_usize];
        while let Some(left) = open.last_mut() {
            if *left == 0 {
                open.pop();
                continue;
            }
            *left -= 1;
            let within = match self.head()? {
                Head::Array(count) => count,
                Head::Map(count) => count.saturating_mul(2),
                _ => continue,
            };
            if open.len() > DEEPEST {
                return Err(Malformed::TooDeep);
            }
            open.push(within);
        }
        Ok(())
    }

    /// Nothing may follow.
    pub fn finish(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            more => Err(Malformed::Trailing(more)),
        }
    }

    fn head(&mut self) -> Result<Head<'a>, Malformed> {
        let marker = self.take(1)?[0];
        Ok(match marker {
            0x00..=0x7f => Head::Integer(marker.into()),
            0x80..=0x8f => Head::Map((marker & 0x0f).into()),
            0x90..=0x9f => Head::Array((marker & 0x0f).into()),
            0xa0..=0xbf => Head::Text(self.take((marker & 0x1f).into())?),
            0xc0 => Head::Nil,
            0xc1 => return Err(Malformed::Reserved),
            0xc2 | 0xc3 => Head::Boolean(marker == 0xc3),
            0xc4..=0xc6 => self.opaque(1 << (marker - 0xc4), 0)?,
            0xc7..=0xc9 => self.opaque(1 << (marker - 0xc7), 1)?,
            0xca => Head::Float(f32::from_bits(self.unsigned(4)? as u32).into()),
            0xcb => Head::Float(f64::from_bits(self.unsigned(8)?)),
            0xcc..=0xcf => Head::Integer(self.unsigned(1 << (marker - 0xcc))?.into()),
            0xd0..=0xd3 => Head::Integer(self.signed(1 << (marker - 0xd0))?.into()),
            0xd4..=0xd8 => {
                self.take(1 + (1 << (marker - 0xd4)))?;
                Head::Opaque
            }
            0xd9..=0xdb => {
                let length = self.length(1 << (marker - 0xd9))?;
                Head::Text(self.take(length)?)
            }
            0xdc | 0xdd => Head::Array(self.length(2 << (marker - 0xdc))?),
            0xde | 0xdf => Head::Map(self.length(2 << (marker - 0xde))?),
            0xe0..=0xff => Head::Integer(i8::from_be_bytes([marker]).into()),
        })
    }

    /// Bytes after their length, and so many that say of what type they are.
    fn opaque(&mut self, width: usize, type_bytes: usize) -> Result<Head<'a>, Malformed> {
        let length = self.length(width)?;
        self.take(type_bytes)?;
        self.take(length)?;
        Ok(Head::Opaque)
    }

    fn length(&mut self, width: usize) -> Result<usize, Malformed> {
        // What no address reaches is not there either.
        usize::try_from(self.unsigned(width)?).map_err(|_| Malformed::Truncated)
    }

    fn unsigned(&mut self, width: usize) -> Result<u64, Malformed> {
        let bytes = self.take(width)?;
        Ok(bytes
            .iter()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn signed(&mut self, width: usize) -> Result<i64, Malformed> {
        let unused = 64 - 8 * width;
        Ok((self.unsigned(width)? << unused).cast_signed() >> unused)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }
}

fn as_text(bytes: &[u8]) -> Result<&str, Malformed> {
    str::from_utf8(bytes).map_err(|_| Malformed::NotText)
}

/// Write nil.
pub fn write_nil(to: &mut Vec<u8>) {
    to.push(0xc0);
}

/// Write an integer.
pub fn write_integer(to: &mut Vec<u8>, value: Integer) -> Result<(), OutOfRange> {
    if let Ok(value) = u64::try_from(value) {
        write_unsigned(to, value);
        return Ok(());
    }
    let value = i64::try_from(value).map_err(|_| OutOfRange(value))?;
    match value {
        -32..=-1 => to.push(value as u8),
        -0x80..=-33 => to.extend([0xd0, value as u8]),
        -0x8000..=-0x81 => write_marked(to, 0xd1, &(value as i16).to_be_bytes()),
        -0x8000_0000..=-0x8001 => write_marked(to, 0xd2, &(value as i32).to_be_bytes()),
        _ => write_marked(to, 0xd3, &value.to_be_bytes()),
    }
    Ok(())
}

fn write_unsigned(to: &mut Vec<u8>, value: u64) {
    match value {
        0..=0x7f => to.push(value as u8),
        0x80..=0xff => to.extend([0xcc, value as u8]),
        0x100..=0xffff => write_marked(to, 0xcd, &(value as u16).to_be_bytes()),
        0x1_0000..=0xffff_ffff => write_marked(to, 0xce, &(value as u32).to_be_bytes()),
        _ => write_marked(to, 0xcf, &value.to_be_bytes()),
    }
}

/// Write a text.
pub fn write_text(to: &mut Vec<u8>, text: &str) {
    let length = text.len();
    match length {
        0..=31 => to.push(0xa0 | length as u8),
        32..=0xff => to.extend([0xd9, length as u8]),
        _ => write_length(to, 0xda, length),
    }
    to.extend_from_slice(text.as_bytes());
}

/// Write the beginning of an array of so many items.
pub fn write_array(to: &mut Vec<u8>, count: usize) {
    match count {
        0..=15 => to.push(0x90 | count as u8),
        _ => write_length(to, 0xdc, count),
    }
}

/// Write the beginning of a map of so many pairs.
pub fn write_map(to: &mut Vec<u8>, count: usize) {
    match count {
        0..=15 => to.push(0x80 | count as u8),
        _ => write_length(to, 0xde, count),
    }
}

/// Write a number, a text or a truth value.
pub fn write_scalar(to: &mut Vec<u8>, value: Scalar<'_>) -> Result<(), OutOfRange> {
    match value {
        Scalar::Boolean(value) => to.push(0xc2 | u8::from(value)),
        Scalar::Integer(value) => write_integer(to, value)?,
        Scalar::Float(value) => write_marked(to, 0xcb, &value.to_bits().to_be_bytes()),
        Scalar::Text(text) => write_text(to, text),
    }
    Ok(())
}

fn write_marked(to: &mut Vec<u8>, marker: u8, bytes: &[u8]) {
    to.push(marker);
    to.extend_from_slice(bytes);
}

/// A length of 2 bytes after its marker, or of 4 after the next one.
fn write_length(to: &mut Vec<u8>, marker: u8, length: usize) {
    match u16::try_from(length) {
        Ok(length) => write_marked(to, marker, &length.to_be_bytes()),
        Err(_) => {
            let length = u32::try_from(length).expect("no record has 4 GiB");
            write_marked(to, marker + 1, &length.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(value: Integer) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_integer(&mut bytes, value).expect("within range");
        bytes
    }

    #[test]
    fn integers_come_back_in_the_fewest_bytes() {
        for (value, bytes) in [
            (0, 1),
            (127, 1),
            (128, 2),
            (255, 2),
            (256, 3),
            (65_535, 3),
            (65_536, 5),
            (u32::MAX.into(), 5),
            (Integer::from(u32::MAX) + 1, 9),
            (u64::MAX.into(), 9),
            (-1, 1),
            (-32, 1),
            (-33, 2),
            (-128, 2),
            (-129, 3),
            (-32_768, 3),
            (-32_769, 5),
            (i32::MIN.into(), 5),
            (Integer::from(i32::MIN) - 1, 9),
            (i64::MIN.into(), 9),
        ] {
            let stored = written(value);
            assert_eq!(stored.len(), bytes, "{value}");
            assert_eq!(Reader::new(&stored).integer(), Ok(value));
        }
    }

    #[test]
    fn integers_beyond_64_bits_are_refused() {
        for value in [Integer::from(u64::MAX) + 1, Integer::from(i64::MIN) - 1] {
            assert_eq!(
                write_integer(&mut Vec::new(), value),
                Err(OutOfRange(value))
            );
        }
    }

    #[test]
    fn texts_of_every_length_come_back() {
        for length in [0, 31, 32, 255, 256, 65_535, 65_536] {
            let text = "x".repeat(length);
            let mut bytes = Vec::new();
            write_text(&mut bytes, &text);
            let mut reader = Reader::new(&bytes);
            assert_eq!(reader.text(), Ok(text.as_str()));
            assert_eq!(reader.finish(), Ok(()));
        }
    }

    #[test]
    fn every_kind_of_item_is_gone_past() {
        for item in [
            &b"\xc0"[..],
            b"\xc4\x02ab",
            b"\xc7\x01\x05a",
            b"\xca\x00\x00\x00\x00",
            b"\xd8\x01aaaaaaaaaaaaaaaa",
            b"\xa2\xff\xff",
            b"\x92\x01\x81\x80\x90",
            b"\xdd\x00\x00\x00\x01\xdf\x00\x00\x00\x00",
        ] {
            let mut reader = Reader::new(item);
            assert_eq!(reader.skip(), Ok(()), "{item:02x?}");
            assert_eq!(reader.finish(), Ok(()), "{item:02x?}");
            for end in 0..item.len() {
                let cut = Reader::new(&item[..end]).skip();
                assert_eq!(cut, Err(Malformed::Truncated), "{item:02x?}");
            }
        }
    }

    #[test]
    fn what_promises_more_than_there_is_costs_no_memory() {
        for item in [
            &b"\xdf\xff\xff\xff\xff"[..],
            b"\xdd\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xff",
        ] {
            assert_eq!(Reader::new(item).skip(), Err(Malformed::Truncated));
        }
    }

    #[test]
    fn items_too_deep_in_one_another_are_refused() {
        let mut bytes = vec![0x91; DEEPEST];
        bytes.push(0);
        assert_eq!(Reader::new(&bytes).skip(), Ok(()));
        bytes.insert(0, 0x91);
        assert_eq!(Reader::new(&bytes).skip(), Err(Malformed::TooDeep));
    }
}
