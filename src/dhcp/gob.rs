//! Go's encoding `gob`, as far as its `net/rpc` needs it to carry structs (documentation of `encoding/gob`).
//!
//! A stream is a row of messages, each with its length before it. A message is the definition of a type, under a
//! number that only this stream gives it, or a value of one. Fields are found by their names, those that are zero are
//! left out, and those that one side does not know are passed over. So both sides need not have the same types.

use std::collections::{BTreeMap, BTreeSet};

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number without sign, or a boolean.
    Uint(u64),
    /// A number.
    Int(i64),
    /// Bytes or text.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Value>),
    /// A struct: those of its fields that are not zero.
    Struct(Vec<(String, Value)>),
}

impl Value {
    /// A struct of these fields.
    pub fn of<const N: usize>(fields: [(&str, Value); N]) -> Self {
        Self::Struct(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// Text.
    pub fn text(text: &str) -> Self {
        Self::Bytes(text.as_bytes().to_vec())
    }

    /// A field of a struct.
    pub fn get(&self, name: &str) -> Option<&Self> {
        let Self::Struct(fields) = self else { return None };
        fields.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// The bytes of a field; none where it is left out.
    pub fn bytes(&self, name: &str) -> &[u8] {
        match self.get(name) {
            Some(Self::Bytes(bytes)) => bytes,
            _ => &[],
        }
    }

    /// The text of a field; empty where it is left out.
    pub fn string(&self, name: &str) -> String {
        String::from_utf8_lossy(self.bytes(name)).into_owned()
    }

    /// The number of a field; zero where it is left out.
    pub fn number(&self, name: &str) -> i64 {
        match self.get(name) {
            Some(Self::Int(number)) => *number,
            Some(Self::Uint(number)) => i64::try_from(*number).unwrap_or(i64::MAX),
            _ => 0,
        }
    }

    /// The elements of a field that is a list.
    pub fn list(&self, name: &str) -> &[Self] {
        match self.get(name) {
            Some(Self::List(list)) => list,
            _ => &[],
        }
    }
}

/// The type of a value that is sent.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    /// `int`.
    Int,
    /// `uint`.
    Uint,
    /// `[]byte`.
    Bytes,
    /// `string`.
    Text,
    /// A slice, under a number.
    List(i64, &'static Type),
    /// A struct.
    Struct(&'static Struct),
}

/// The type of a struct that is sent. Numbers of structs and slices begin at 65.
#[derive(Debug)]
pub struct Struct {
    /// Its number.
    pub id: i64,
    /// Its name, which only shows in errors.
    pub name: &'static str,
    /// Its fields.
    pub fields: &'static [(&'static str, Type)],
}

const BOOL: i64 = 1;
const INT: i64 = 2;
const UINT: i64 = 3;
const FLOAT: i64 = 4;
const BYTES: i64 = 5;
const TEXT: i64 = 6;

impl Type {
    fn id(self) -> i64 {
        match self {
            Self::Int => INT,
            Self::Uint => UINT,
            Self::Bytes => BYTES,
            Self::Text => TEXT,
            Self::List(id, _) => id,
            Self::Struct(it) => it.id,
        }
    }
}

/// The sending end of a stream.
#[derive(Debug, Default)]
pub struct Encoder {
    defined: BTreeSet<i64>,
}

impl Encoder {
    /// The messages for a value: before it, the definitions of types that the stream has not had yet.
    pub fn encode(&mut self, of: &'static Struct, value: &Value) -> Vec<u8> {
        let mut stream = Vec::new();
        self.define(Type::Struct(of), &mut stream);
        let mut message = Vec::new();
        put_int(of.id, &mut message);
        put_value(Type::Struct(of), value, &mut message);
        put_message(&message, &mut stream);
        stream
    }

    fn define(&mut self, of: Type, stream: &mut Vec<u8>) {
        if of.id() < FIRST_OWN || !self.defined.insert(of.id()) {
            return;
        }
        let mut message = Vec::new();
        put_int(-of.id(), &mut message);
        // Numbers of fields count from the one before, and the first from -1.
        match of {
            Type::List(id, element) => {
                // wireType.SliceT = sliceType{CommonType{Id}, Elem}
                message.extend([2, 1, 2]);
                put_int(id, &mut message);
                message.extend([0, 1]);
                put_int(element.id(), &mut message);
                message.extend([0, 0]);
                put_message(&message, stream);
                self.define(*element, stream);
            }
            Type::Struct(it) => {
                // wireType.StructT = structType{CommonType{Name, Id}, Field}
                message.extend([3, 1, 1]);
                put_bytes(it.name.as_bytes(), &mut message);
                message.push(1);
                put_int(it.id, &mut message);
                message.extend([0, 1]);
                put_uint(it.fields.len() as u64, &mut message);
                for (name, of) in it.fields {
                    message.push(1);
                    put_bytes(name.as_bytes(), &mut message);
                    message.push(1);
                    put_int(of.id(), &mut message);
                    message.push(0);
                }
                message.extend([0, 0]);
                put_message(&message, stream);
                for (_, of) in it.fields {
                    self.define(*of, stream);
                }
            }
            _ => {}
        }
    }
}

fn put_message(message: &[u8], stream: &mut Vec<u8>) {
    put_uint(message.len() as u64, stream);
    stream.extend_from_slice(message);
}

fn put_uint(number: u64, into: &mut Vec<u8>) {
    if number < 128 {
        return into.push(number as u8);
    }
    let bytes = number.to_be_bytes();
    let skipped = number.leading_zeros() as usize / 8;
    // How many bytes follow, as a negative number.
    into.push((skipped as u8).wrapping_sub(8));
    into.extend_from_slice(&bytes[skipped..]);
}

fn put_int(number: i64, into: &mut Vec<u8>) {
    put_uint(if number < 0 { (!number as u64) << 1 | 1 } else { (number as u64) << 1 }, into);
}

fn put_bytes(bytes: &[u8], into: &mut Vec<u8>) {
    put_uint(bytes.len() as u64, into);
    into.extend_from_slice(bytes);
}

fn put_value(of: Type, value: &Value, into: &mut Vec<u8>) {
    match (of, value) {
        (_, Value::Uint(number)) => put_uint(*number, into),
        (_, Value::Int(number)) => put_int(*number, into),
        (_, Value::Bytes(bytes)) => put_bytes(bytes, into),
        (Type::List(_, element), Value::List(list)) => {
            put_uint(list.len() as u64, into);
            list.iter().for_each(|value| put_value(*element, value, into));
        }
        (Type::Struct(it), _) => {
            let mut last = -1;
            for (number, (name, of)) in (0i64..).zip(it.fields) {
                if let Some(value) = value.get(name).filter(|value| !is_zero(value)) {
                    put_uint((number - last) as u64, into);
                    put_value(*of, value, into);
                    last = number;
                }
            }
            into.push(0);
        }
        // A list where none belongs: as if it were empty.
        _ => into.push(0),
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Uint(number) => *number == 0,
        Value::Int(number) => *number == 0,
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::List(list) => list.is_empty(),
        Value::Struct(_) => false,
    }
}

/// Why a stream cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// The number from which on a stream's own types are.
const FIRST_OWN: i64 = 64;
/// How deep values may be in one another.
const DEPTH: usize = 32;

/// The type of a value that is received.
#[derive(Clone, Debug)]
enum Known {
    Struct(Vec<(String, i64)>),
    List(i64),
    Array(i64),
    Map(i64, i64),
    /// One that a method of its own has written.
    Opaque,
}

/// The receiving end of a stream.
#[derive(Debug)]
pub struct Decoder {
    types: BTreeMap<i64, Known>,
}

impl Default for Decoder {
    fn default() -> Self {
        let of = |fields: &[(&str, i64)]| {
            Known::Struct(fields.iter().map(|(name, id)| ((*name).to_owned(), *id)).collect())
        };
        // How definitions of types are themselves written (encoding/gob/type.go).
        let types = BTreeMap::from([
            (
                16,
                of(&[
                    ("ArrayT", 17),
                    ("SliceT", 19),
                    ("StructT", 20),
                    ("MapT", 23),
                    ("GobEncoderT", 24),
                    ("BinaryMarshalerT", 24),
                    ("TextMarshalerT", 24),
                ]),
            ),
            (17, of(&[("CommonType", 18), ("Elem", INT), ("Len", INT)])),
            (18, of(&[("Name", TEXT), ("Id", INT)])),
            (19, of(&[("CommonType", 18), ("Elem", INT)])),
            (20, of(&[("CommonType", 18), ("Field", 22)])),
            (21, of(&[("Name", TEXT), ("Id", INT)])),
            (22, Known::List(21)),
            (23, of(&[("CommonType", 18), ("Key", INT), ("Elem", INT)])),
            (24, of(&[("CommonType", 18)])),
        ]);
        Self { types }
    }
}

impl Decoder {
    /// Reads a message; none where it only defines a type.
    pub fn decode(&mut self, mut message: &[u8]) -> Result<Option<Value>, Malformed> {
        let bytes = &mut message;
        let id = int(bytes)?;
        if id < 0 {
            let id = id.checked_neg().ok_or(Malformed("the number of a type is too low"))?;
            let definition = self.value(16, bytes, 0)?;
            self.types.insert(id, known(&definition)?);
            return Ok(None);
        }
        // Before what is no struct stands a zero.
        if !matches!(self.types.get(&id), Some(Known::Struct(_))) && uint(bytes)? != 0 {
            return Err(Malformed("a value has a field and is no struct"));
        }
        self.value(id, bytes, 0).map(Some)
    }

    fn value(&self, id: i64, bytes: &mut &[u8], depth: usize) -> Result<Value, Malformed> {
        if depth > DEPTH {
            return Err(Malformed("values are too deep in one another"));
        }
        let many = |count: u64, element: i64, bytes: &mut &[u8]| {
            // Each takes a byte at least.
            if count > bytes.len() as u64 {
                return Err(Malformed("a list is longer than its message"));
            }
            (0..count).map(|_| self.value(element, bytes, depth + 1)).collect::<Result<Vec<_>, _>>()
        };
        match (id, self.types.get(&id)) {
            (BOOL | UINT | FLOAT, _) => uint(bytes).map(Value::Uint),
            (INT, _) => int(bytes).map(Value::Int),
            (BYTES | TEXT, _) | (_, Some(Known::Opaque)) => text(bytes).map(|it| Value::Bytes(it.to_vec())),
            (_, Some(Known::List(element) | Known::Array(element))) => {
                let count = uint(bytes)?;
                many(count, *element, bytes).map(Value::List)
            }
            (_, Some(Known::Map(key, element))) => {
                for _ in 0..uint(bytes)? {
                    self.value(*key, bytes, depth + 1)?;
                    self.value(*element, bytes, depth + 1)?;
                }
                Ok(Value::List(Vec::new()))
            }
            (_, Some(Known::Struct(types))) => {
                let mut fields = Vec::new();
                let mut next = 0;
                loop {
                    let delta = uint(bytes)?;
                    let Some(skipped) = delta.checked_sub(1) else { return Ok(Value::Struct(fields)) };
                    next = usize::try_from(skipped)
                        .ok()
                        .and_then(|it| it.checked_add(next))
                        .unwrap_or(usize::MAX);
                    let (name, id) = types.get(next).ok_or(Malformed("a struct has a field too many"))?;
                    fields.push((name.clone(), self.value(*id, bytes, depth + 1)?));
                    next += 1;
                }
            }
            (_, None) => Err(Malformed("a value is of a type that was not defined")),
        }
    }
}

fn known(definition: &Value) -> Result<Known, Malformed> {
    let Value::Struct(fields) = definition else { return Err(Malformed("a definition is no struct")) };
    let Some((kind, of)) = fields.first() else { return Err(Malformed("a definition is empty")) };
    Ok(match kind.as_str() {
        "StructT" => {
            Known::Struct(of.list("Field").iter().map(|it| (it.string("Name"), it.number("Id"))).collect())
        }
        "SliceT" => Known::List(of.number("Elem")),
        "ArrayT" => Known::Array(of.number("Elem")),
        "MapT" => Known::Map(of.number("Key"), of.number("Elem")),
        _ => Known::Opaque,
    })
}

/// Reads a number, or tells that there are too few bytes.
pub fn uint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let cut = Malformed("a number is cut");
    let (&first, rest) = bytes.split_first().ok_or(cut)?;
    if first < 128 {
        *bytes = rest;
        return Ok(first.into());
    }
    let len = usize::from(first.wrapping_neg());
    if len > 8 {
        return Err(Malformed("a number is too long"));
    }
    let (number, rest) = rest.split_at_checked(len).ok_or(cut)?;
    *bytes = rest;
    Ok(number.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn int(bytes: &mut &[u8]) -> Result<i64, Malformed> {
    let number = uint(bytes)?;
    let half = (number >> 1) as i64;
    Ok(if number & 1 == 1 { !half } else { half })
}

fn text<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let len = usize::try_from(uint(bytes)?).unwrap_or(usize::MAX);
    let (text, rest) = bytes.split_at_checked(len).ok_or(Malformed("a text is cut"))?;
    *bytes = rest;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INNER: Struct = Struct { id: 66, name: "Inner", fields: &[("A", Type::Int), ("B", Type::Bytes)] };
    const OUTER: Struct = Struct {
        id: 65,
        name: "Outer",
        fields: &[
            ("Name", Type::Text),
            ("Seq", Type::Uint),
            ("List", Type::List(67, &Type::Struct(&INNER))),
            ("Last", Type::Int),
        ],
    };

    fn messages(mut stream: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !stream.is_empty() {
            found.push(text(&mut stream).unwrap().to_vec());
        }
        found
    }

    fn example() -> Value {
        let inner = |number| Value::of([("A", Value::Int(number)), ("B", Value::Bytes(vec![1, 2]))]);
        Value::of([
            ("Name", Value::text("net")),
            ("Seq", Value::Uint(u64::MAX)),
            ("List", Value::List(vec![inner(-129), inner(1 << 40)])),
            ("Last", Value::Int(i64::MIN)),
        ])
    }

    #[test]
    fn the_number_of_a_type_can_be_too_low() {
        // The lowest of all, of which there is no negative.
        let message = [&[0xf8][..], &[0xff; 8], &[0; 9]].concat();
        assert!(Decoder::default().decode(&message).is_err());
    }

    #[test]
    fn what_is_encoded_is_decoded_and_types_are_defined_once() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        for count in [4, 1] {
            let stream = messages(&encoder.encode(&OUTER, &example()));
            assert_eq!(stream.len(), count);
            let values: Vec<Value> =
                stream.iter().filter_map(|message| decoder.decode(message).unwrap()).collect();
            assert_eq!(values, [example()]);
        }
    }

    /// From the documentation of encoding/gob: `type Point struct { X, Y int }`, and the value `Point{22, 33}`.
    #[test]
    fn the_example_of_the_documentation() {
        const POINT: Struct = Struct { id: 65, name: "Point", fields: &[("X", Type::Int), ("Y", Type::Int)] };
        let stream: &[u8] = &[
            0x1f, 0xff, 0x81, 0x03, 0x01, 0x01, 0x05, 0x50, 0x6f, 0x69, 0x6e, 0x74, 0x01, 0xff, 0x82, 0x00,
            0x01, 0x02, 0x01, 0x01, 0x58, 0x01, 0x04, 0x00, 0x01, 0x01, 0x59, 0x01, 0x04, 0x00, 0x00, 0x00,
            0x07, 0xff, 0x82, 0x01, 0x2c, 0x01, 0x42, 0x00,
        ];
        let point = Value::of([("X", Value::Int(22)), ("Y", Value::Int(33))]);
        assert_eq!(Encoder::default().encode(&POINT, &point), stream);
        let mut decoder = Decoder::default();
        let values: Vec<_> = messages(stream).iter().map(|it| decoder.decode(it).unwrap()).collect();
        assert_eq!(values, [None, Some(point)]);
    }

    proptest! {
        #[test]
        fn nothing_that_comes_is_fatal(stream in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..5),
            at in 0usize..60, byte: u8) {
            let mut decoder = Decoder::default();
            for mut message in messages(&Encoder::default().encode(&OUTER, &example())) {
                if let Some(place) = message.get_mut(at) {
                    *place = byte;
                }
                let _ = decoder.decode(&message);
            }
            for message in stream {
                let _ = decoder.decode(&message);
            }
        }
    }
}
