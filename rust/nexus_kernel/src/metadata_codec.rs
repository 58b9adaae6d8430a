//! Metadata and journal entries as stored. Twin: `nexus.core.metadata_codec`; the bytes are in
//! `docs/formats.md`.
//!
//! A record borrows its texts: from the payload that it was read from, or from who writes it. Paths
//! that stay in Rust use it; calls from Python do so for what the twin, a C library that reads and
//! fills the class at once, is slower at: the reading of events.
//!
//! Invariants:
//!
//! 1. Both twins store a record as the same bytes.
//! 2. What one of them reads the other reads alike; what one refuses the other refuses.
//! 3. A field that a newer release appended is gone past; one that an older release did not know has
//!    its default.

use std::collections::HashMap;
use std::fmt;

use crate::msgpack::{self, Integer, Malformed, OutOfRange, Reader, Scalar};

/// The first byte of stored metadata.
pub const METADATA_VERSION: u8 = 1;
/// The first byte of a stored event.
pub const EVENT_VERSION: u8 = 1;

const METADATA_FIELDS: usize = 17;
const METADATA_REQUIRED: usize = 12;
const EVENT_FIELDS: usize = 13;
const EVENT_REQUIRED: usize = 5;

/// Names with their values, in the order in which they are stored; no name twice.
pub type Attributes<'a> = Vec<(&'a str, Scalar<'a>)>;

/// Why a payload cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// It begins with another codec version, or is empty.
    Version(Option<u8>),
    /// What follows the version is no array of enough fields.
    Record(Malformed),
    /// An array, but of too few fields.
    Short(usize),
    /// The field of this number cannot be read.
    Field(usize, Malformed),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(None) => write!(to, "has codec version none"),
            Self::Version(Some(found)) => write!(to, "has codec version {found:02x}"),
            Self::Record(why) => write!(to, "{why}"),
            Self::Short(count) => write!(to, "only {count} fields are there"),
            Self::Field(index, why) => write!(to, "field {index}: {why}"),
        }
    }
}

/// `nexus.contracts.metadata.FileMetadata`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the fields are described there
pub struct Metadata<'a> {
    pub entry_type: Integer,
    pub size: Integer,
    pub etag: &'a str,
    pub version: Integer,
    pub created_at_ns: Integer,
    pub modified_at_ns: Integer,
    pub owner_id: &'a str,
    pub mode: Integer,
    pub mime_type: &'a str,
    pub zone_id: &'a str,
    pub backend_name: &'a str,
    pub modified_by: &'a str,
    pub run_id: Option<&'a str>,
    pub attributes: Attributes<'a>,
    pub mount: Option<Attributes<'a>>,
    pub first_version: Integer,
    pub channel_id: Option<&'a str>,
}

impl<'a> Metadata<'a> {
    /// Append the stored form.
    pub fn encode(&self, to: &mut Vec<u8>) -> Result<(), OutOfRange> {
        to.push(METADATA_VERSION);
        msgpack::write_array(to, METADATA_FIELDS);
        msgpack::write_integer(to, self.entry_type)?;
        msgpack::write_integer(to, self.size)?;
        msgpack::write_text(to, self.etag);
        msgpack::write_integer(to, self.version)?;
        msgpack::write_integer(to, self.created_at_ns)?;
        msgpack::write_integer(to, self.modified_at_ns)?;
        msgpack::write_text(to, self.owner_id);
        msgpack::write_integer(to, self.mode)?;
        msgpack::write_text(to, self.mime_type);
        msgpack::write_text(to, self.zone_id);
        msgpack::write_text(to, self.backend_name);
        msgpack::write_text(to, self.modified_by);
        write_text_or_nil(to, self.run_id);
        write_attributes(to, &self.attributes)?;
        match &self.mount {
            Some(mount) => write_attributes(to, mount)?,
            None => msgpack::write_nil(to),
        }
        msgpack::write_integer(to, self.first_version)?;
        write_text_or_nil(to, self.channel_id);
        Ok(())
    }

    /// Read a payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(payload, METADATA_VERSION, METADATA_REQUIRED)?;
        let metadata = Self {
            entry_type: fields.next(Reader::integer)?,
            size: fields.next(Reader::integer)?,
            etag: fields.next(Reader::text)?,
            version: fields.next(Reader::integer)?,
            created_at_ns: fields.next(Reader::integer)?,
            modified_at_ns: fields.next(Reader::integer)?,
            owner_id: fields.next(Reader::text)?,
            mode: fields.next(Reader::integer)?,
            mime_type: fields.next(Reader::text)?,
            zone_id: fields.next(Reader::text)?,
            backend_name: fields.next(Reader::text)?,
            modified_by: fields.next(Reader::text)?,
            run_id: fields.next_or(None, Reader::text_or_nil)?,
            attributes: fields.next_or(Vec::new(), attributes)?,
            mount: fields.next_or(None, attributes_or_nil)?,
            first_version: fields.next_or(1, Reader::integer)?,
            channel_id: fields.next_or(None, Reader::text_or_nil)?,
        };
        fields.end()?;
        Ok(metadata)
    }
}

/// `nexus.contracts.file_events.FileEvent`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the fields are described there
pub struct Event<'a> {
    pub kind: &'a str,
    pub path: &'a str,
    pub user_id: &'a str,
    pub timestamp_ns: Integer,
    pub zone_id: &'a str,
    pub revision: Integer,
    pub new_path: Option<&'a str>,
    pub etag: &'a str,
    pub size: Integer,
    pub version: Integer,
    pub agent_id: Option<&'a str>,
    pub run_id: Option<&'a str>,
    pub sequence: Integer,
}

impl<'a> Event<'a> {
    /// Append the stored form.
    pub fn encode(&self, to: &mut Vec<u8>) -> Result<(), OutOfRange> {
        to.push(EVENT_VERSION);
        msgpack::write_array(to, EVENT_FIELDS);
        msgpack::write_text(to, self.kind);
        msgpack::write_text(to, self.path);
        msgpack::write_text(to, self.user_id);
        msgpack::write_integer(to, self.timestamp_ns)?;
        msgpack::write_text(to, self.zone_id);
        msgpack::write_integer(to, self.revision)?;
        write_text_or_nil(to, self.new_path);
        msgpack::write_text(to, self.etag);
        msgpack::write_integer(to, self.size)?;
        msgpack::write_integer(to, self.version)?;
        write_text_or_nil(to, self.agent_id);
        write_text_or_nil(to, self.run_id);
        msgpack::write_integer(to, self.sequence)
    }

    /// Read a payload. Its place in the journal is in the seal and the key, not here.
    pub fn decode(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(payload, EVENT_VERSION, EVENT_REQUIRED)?;
        let event = Self {
            kind: fields.next(Reader::text)?,
            path: fields.next(Reader::text)?,
            user_id: fields.next(Reader::text)?,
            timestamp_ns: fields.next(Reader::integer)?,
            zone_id: fields.next(Reader::text)?,
            revision: fields.next_or(0, Reader::integer)?,
            new_path: fields.next_or(None, Reader::text_or_nil)?,
            etag: fields.next_or("", Reader::text)?,
            size: fields.next_or(0, Reader::integer)?,
            version: fields.next_or(0, Reader::integer)?,
            agent_id: fields.next_or(None, Reader::text_or_nil)?,
            run_id: fields.next_or(None, Reader::text_or_nil)?,
            sequence: fields.next_or(0, Reader::integer)?,
        };
        fields.end()?;
        Ok(event)
    }
}

/// The fields of one record, from the first to the last.
struct Fields<'a> {
    reader: Reader<'a>,
    index: usize,
    count: usize,
}

type Read<'a, T> = fn(&mut Reader<'a>) -> Result<T, Malformed>;

impl<'a> Fields<'a> {
    fn new(payload: &'a [u8], version: u8, required: usize) -> Result<Self, DecodeError> {
        let body = match payload.split_first() {
            Some((found, body)) if *found == version => body,
            found => return Err(DecodeError::Version(found.map(|(found, _)| *found))),
        };
        let mut reader = Reader::new(body);
        let count = reader.array().map_err(DecodeError::Record)?;
        if count < required {
            return Err(DecodeError::Short(count));
        }
        Ok(Self {
            reader,
            index: 0,
            count,
        })
    }

    fn next<T>(&mut self, read: Read<'a, T>) -> Result<T, DecodeError> {
        let value = read(&mut self.reader).map_err(|why| DecodeError::Field(self.index, why))?;
        self.index += 1;
        Ok(value)
    }

    fn next_or<T>(&mut self, default: T, read: Read<'a, T>) -> Result<T, DecodeError> {
        if self.index < self.count {
            self.next(read)
        } else {
            Ok(default)
        }
    }

    fn end(mut self) -> Result<(), DecodeError> {
        while self.index < self.count {
            self.next(Reader::skip)?;
        }
        self.reader.finish().map_err(DecodeError::Record)
    }
}

fn attributes<'a>(reader: &mut Reader<'a>) -> Result<Attributes<'a>, Malformed> {
    attributes_or_nil(reader)?.ok_or(Malformed::Wanted("map"))
}

fn attributes_or_nil<'a>(reader: &mut Reader<'a>) -> Result<Option<Attributes<'a>>, Malformed> {
    let Some(count) = reader.map_or_nil()? else {
        return Ok(None);
    };
    let mut found = Attributes::new();
    for _ in 0..count {
        found.push((reader.text()?, reader.scalar()?));
    }
    Ok(Some(if count > 1 {
        without_repeats(found)
    } else {
        found
    }))
}

/// A name keeps its first place and takes its last value, as in a dictionary.
fn without_repeats<'a>(found: Attributes<'a>) -> Attributes<'a> {
    let mut places = HashMap::with_capacity(found.len());
    let mut kept = Attributes::with_capacity(found.len());
    for (name, value) in found {
        let place = *places.entry(name).or_insert(kept.len());
        if place == kept.len() {
            kept.push((name, value));
        } else {
            kept[place].1 = value;
        }
    }
    kept
}

fn write_text_or_nil(to: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => msgpack::write_text(to, text),
        None => msgpack::write_nil(to),
    }
}

fn write_attributes(to: &mut Vec<u8>, attributes: &Attributes<'_>) -> Result<(), OutOfRange> {
    msgpack::write_map(to, attributes.len());
    for (name, value) in attributes {
        msgpack::write_text(to, name);
        msgpack::write_scalar(to, *value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Metadata<'static> {
        Metadata {
            entry_type: 0,
            size: 5,
            etag: "b3:00",
            version: 1,
            created_at_ns: 1_700_000_000_000_000_000,
            modified_at_ns: 1_700_000_000_000_000_000,
            owner_id: "ann",
            mode: 0o644,
            mime_type: "text/plain",
            zone_id: "root",
            backend_name: "cas_memory",
            modified_by: "indexer",
            run_id: Some("run-1"),
            attributes: vec![
                ("text", Scalar::Text("ä")),
                ("number", Scalar::Integer(-5)),
                ("float", Scalar::Float(0.5)),
                ("truth", Scalar::Boolean(true)),
            ],
            mount: None,
            first_version: 1,
            channel_id: None,
        }
    }

    fn event() -> Event<'static> {
        Event {
            kind: "file_rename",
            path: "/a",
            user_id: "ann",
            timestamp_ns: 1,
            zone_id: "root",
            revision: 0,
            new_path: Some("/b"),
            etag: "",
            size: 5,
            version: 1,
            agent_id: None,
            run_id: Some("run-1"),
            sequence: 0,
        }
    }

    fn stored(metadata: &Metadata<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        metadata.encode(&mut bytes).expect("numbers within range");
        bytes
    }

    fn stored_event() -> Vec<u8> {
        let mut bytes = Vec::new();
        event().encode(&mut bytes).expect("numbers within range");
        bytes
    }

    #[test]
    fn records_come_back_as_they_were_stored() {
        assert_eq!(Metadata::decode(&stored(&metadata())), Ok(metadata()));
        assert_eq!(Event::decode(&stored_event()), Ok(event()));
    }

    #[test]
    fn invariant_2_no_part_of_a_record_is_a_record() {
        let whole = stored(&metadata());
        for end in 0..whole.len() {
            assert!(Metadata::decode(&whole[..end]).is_err(), "{end}");
        }
        let whole = stored_event();
        for end in 0..whole.len() {
            assert!(Event::decode(&whole[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn invariant_2_no_single_byte_makes_reading_panic() {
        for whole in [stored(&metadata()), stored_event()] {
            for at in 0..whole.len() {
                for byte in 0..=255 {
                    let mut changed = whole.clone();
                    changed[at] = byte;
                    drop(Metadata::decode(&changed));
                    drop(Event::decode(&changed));
                }
            }
        }
    }

    #[test]
    fn invariant_2_another_version_is_named() {
        assert_eq!(Metadata::decode(b""), Err(DecodeError::Version(None)));
        assert_eq!(
            Metadata::decode(b"\x02"),
            Err(DecodeError::Version(Some(2)))
        );
        assert_eq!(Event::decode(b"\x00"), Err(DecodeError::Version(Some(0))));
    }

    #[test]
    fn invariant_3_what_was_appended_is_gone_past() {
        let mut bytes = stored(&metadata());
        assert_eq!(bytes[1..4], [0xdc, 0, 17]);
        bytes[3] = 19;
        bytes.extend(b"\xa3new\x92\x01\x80");
        assert_eq!(Metadata::decode(&bytes), Ok(metadata()));
    }

    #[test]
    fn invariant_3_what_an_older_release_did_not_know_has_its_default() {
        let bytes = b"\x01\x9c\x00\x05\xa0\x01\x01\x01\xa0\x01\xa0\xa0\xa0\xa0";
        let read = Metadata::decode(bytes).expect("twelve fields are enough");
        assert_eq!(
            (read.run_id, read.channel_id, read.first_version),
            (None, None, 1)
        );
        assert_eq!((read.attributes, read.mount), (vec![], None));
        assert_eq!(
            Event::decode(b"\x01\x94\xa0\xa0\xa0\x00"),
            Err(DecodeError::Short(4))
        );
    }

    #[test]
    fn a_name_that_comes_twice_has_its_last_value() {
        let bytes = b"\x01\x9e\x00\x05\xa0\x01\x01\x01\xa0\x01\xa0\xa0\xa0\xa0\xc0\x83\xa1a\x01\xa1b\x02\xa1a\x03";
        let read = Metadata::decode(bytes).expect("attributes");
        let wanted = vec![("a", Scalar::Integer(3)), ("b", Scalar::Integer(2))];
        assert_eq!(read.attributes, wanted);
    }

    #[test]
    fn a_number_that_has_no_form_is_refused() {
        let huge = Metadata {
            size: Integer::from(u64::MAX) + 1,
            ..metadata()
        };
        assert_eq!(huge.encode(&mut Vec::new()), Err(OutOfRange(huge.size)));
    }
}
