//! Metadata of every shape: what is stored is read as it was.

#![no_main]

use std::collections::HashSet;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use nexus_kernel::metadata_codec::{Attributes, Metadata};
use nexus_kernel::msgpack::{Integer, Scalar};

#[derive(Arbitrary, Debug)]
enum Value<'a> {
    Boolean(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(&'a str),
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    signed: [i64; 3],
    unsigned: [u64; 3],
    beyond: Option<i128>,
    texts: [&'a str; 6],
    run_id: Option<&'a str>,
    channel_id: Option<&'a str>,
    attributes: Vec<(&'a str, Value<'a>)>,
    mount: Option<Vec<(&'a str, Value<'a>)>>,
}

fuzz_target!(|input: Input<'_>| {
    let metadata = Metadata {
        entry_type: input.signed[0].into(),
        size: input.beyond.unwrap_or(input.unsigned[0].into()),
        etag: input.texts[0],
        version: input.unsigned[1].into(),
        created_at_ns: input.signed[1].into(),
        modified_at_ns: input.signed[2].into(),
        owner_id: input.texts[1],
        mode: input.unsigned[2].into(),
        mime_type: input.texts[2],
        zone_id: input.texts[3],
        backend_name: input.texts[4],
        modified_by: input.texts[5],
        run_id: input.run_id,
        attributes: attributes(&input.attributes),
        mount: input.mount.as_deref().map(attributes),
        first_version: 1,
        channel_id: input.channel_id,
    };
    let mut stored = Vec::new();
    let has_form = (i64::MIN.into()..=Integer::from(u64::MAX)).contains(&metadata.size);
    assert_eq!(metadata.encode(&mut stored).is_ok(), has_form);
    if has_form {
        assert_eq!(Metadata::decode(&stored), Ok(metadata));
    }
});

/// No name twice, and no number that is none: it equals nothing.
fn attributes<'a>(values: &[(&'a str, Value<'a>)]) -> Attributes<'a> {
    let mut names = HashSet::new();
    let scalars = values.iter().map(|(name, value)| (*name, scalar(value)));
    scalars.filter(|(name, _)| names.insert(*name)).collect()
}

fn scalar<'a>(value: &Value<'a>) -> Scalar<'a> {
    match value {
        Value::Boolean(value) => Scalar::Boolean(*value),
        Value::Signed(value) => Scalar::Integer((*value).into()),
        Value::Unsigned(value) => Scalar::Integer((*value).into()),
        Value::Float(value) if value.is_nan() => Scalar::Float(0.0),
        Value::Float(value) => Scalar::Float(*value),
        Value::Text(value) => Scalar::Text(value),
    }
}
