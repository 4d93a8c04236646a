//! Reading JSON the way Go's decoder does, because everybody's configurations rely on it.
//!
//! * Keys of structs match without regard to case, an exact match first: containerd sends `HostPort` where others
//!   send `hostPort`. Keys of maps (sysctl names, labels) keep their case.
//! * `null` leaves the default.
//! * Unknown keys are ignored.
//!
//! An error names the key by its path, the value that stands there, and what would be right.

use std::fmt;
use std::net::IpAddr;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};
use serde_json::{Map, Value};

/// Why a value is not what it should be.
#[derive(Debug)]
pub struct Error {
    /// Path of the value, innermost key first while the error travels up, e.g. `ipam.ranges[0][1].subnet`.
    path: String,
    message: String,
}

impl Error {
    fn at_key(mut self, key: &str) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{key}{dot}{}", self.path);
        self
    }

    fn at_index(mut self, index: usize) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("[{index}]{dot}{}", self.path);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { path: String::new(), message: message.to_string() }
    }
}

/// Decodes a value into a type, matching the keys of its structs without regard to case.
pub fn decode<T: DeserializeOwned>(value: &Value) -> Result<T, Error> {
    T::deserialize(Folded(value))
}

/// Decodes an object into a struct, matching keys without regard to case.
pub fn decode_object<T: DeserializeOwned>(object: &Map<String, Value>) -> Result<T, Error> {
    T::deserialize(FoldedObject(object))
}

/// The value of a key, matched without regard to case, an exact match first; `null` counts as absent.
pub fn get<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    get_or_null(object, key).filter(|v| !v.is_null())
}

/// The same where `null` is a value.
pub fn get_or_null<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let folded = || object.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v);
    object.get(key).or_else(folded)
}

/// The keys of a struct, as they are written in JSON: what a page of documentation must have, and no more.
pub fn keys_of<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut keys: &'static [&'static str] = &[];
    // It asks for its fields, is given none, and may fail over it.
    let _ = T::deserialize(Asked(&mut keys));
    keys
}

/// What a struct asks of its deserializer.
struct Asked<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Asked<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("only the keys are of interest"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// For `#[serde(deserialize_with)]`: an address, where an IPv4-mapped IPv6 address counts as IPv4; empty text is none.
pub fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(Some(address.to_canonical())),
        Err(_) => Err(de::Error::custom(format!("invalid IP address {text:?}"))),
    }
}

/// A value whose struct keys are matched without regard to case.
#[derive(Clone, Copy)]
struct Folded<'a>(&'a Value);

impl Folded<'_> {
    fn mismatch(self, wanted: &dyn de::Expected) -> Error {
        let mut found = self.0.to_string();
        if found.len() > 60 {
            let cut = (0..=60).rev().find(|&i| found.is_char_boundary(i)).unwrap_or(0);
            found.truncate(cut);
            found.push_str("...");
        }
        de::Error::custom(format!("the value {found} is wrong; wanted is {}", in_words(&wanted.to_string())))
    }
}

/// What is wanted, for people: serde has the names of Rust's types for numbers.
fn in_words(wanted: &str) -> &str {
    match wanted {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" | "u128" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" | "i128" => "a whole number",
        "f32" | "f64" => "a number",
        words => words,
    }
}

/// An object that is not wrapped in a [`Value`].
struct FoldedObject<'a>(&'a Map<String, Value>);

impl<'de> Deserializer<'de> for FoldedObject<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Entries::of_map(self.0))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Entries::of_struct(self.0, fields))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct Wanted(&'static str);

impl de::Expected for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Any scalar is handed to serde_json's own deserializer, and its error replaced by one that shows the value.
macro_rules! scalars {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.0 {
                Value::Object(_) | Value::Array(_) => Err(self.mismatch(&visitor)),
                scalar => scalar.$method(visitor).map_err(|e| match e.is_data() {
                    // serde_json says what it expected; the value itself is more use to who has to mend it.
                    true if e.to_string().starts_with("invalid ") => {
                        let text = e.to_string();
                        let wanted = in_words(text.rsplit("expected ").next().unwrap_or_default());
                        de::Error::custom(format!("the value {} is wrong; wanted is {wanted}", self.0))
                    }
                    _ => de::Error::custom(e),
                }),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for Folded<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(map) => visitor.visit_map(Entries::of_map(map)),
            Value::Array(items) => visitor.visit_seq(Items { items: items.iter(), index: 0 }),
            scalar => scalar.deserialize_any(visitor).map_err(de::Error::custom),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(map) => visitor.visit_map(Entries::of_struct(map, fields)),
            _ => Err(self.mismatch(&Wanted("an object"))),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(map) => visitor.visit_map(Entries::of_map(map)),
            _ => Err(self.mismatch(&Wanted("an object"))),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => visitor.visit_seq(Items { items: items.iter(), index: 0 }),
            _ => Err(self.mismatch(&Wanted("a list"))),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::String(text) if variants.contains(&text.as_str()) => {
                visitor.visit_enum(text.as_str().into_deserializer())
            }
            Value::String(_) => {
                let choices: Vec<String> = variants.iter().map(|v| format!("{v:?}")).collect();
                Err(de::Error::custom(format!(
                    "the value {} is unknown; wanted is one of {}",
                    self.0,
                    choices.join(", ")
                )))
            }
            other => other.deserialize_enum(name, variants, visitor).map_err(de::Error::custom),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    scalars! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64 deserialize_char deserialize_str deserialize_string
    }

    forward_to_deserialize_any! { bytes byte_buf unit unit_struct tuple tuple_struct identifier }
}

/// The entries of an object: of a struct with the spelling of its fields, of a map as they are.
struct Entries<'a> {
    entries: Vec<(&'a str, &'a Value)>,
    next: usize,
}

impl<'a> Entries<'a> {
    fn of_struct(map: &'a Map<String, Value>, fields: &'static [&'static str]) -> Self {
        let entries =
            fields.iter().filter_map(|&field| get(map, field).map(|value| (field, value))).collect();
        Self { entries, next: 0 }
    }

    fn of_map(map: &'a Map<String, Value>) -> Self {
        Self { entries: map.iter().map(|(k, v)| (k.as_str(), v)).collect(), next: 0 }
    }
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((key, _)) = self.entries.get(self.next) else { return Ok(None) };
        let key: StrDeserializer<'_, Error> = (*key).into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((key, value)) = self.entries.get(self.next) else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        self.next += 1;
        seed.deserialize(Folded(value)).map_err(|e| e.at_key(key))
    }
}

struct Items<'a> {
    items: std::slice::Iter<'a, Value>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(item) = self.items.next() else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        seed.deserialize(Folded(item)).map(Some).map_err(|e| e.at_index(index))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    #[derive(Deserialize, Debug, Default, PartialEq)]
    #[serde(default, rename_all = "camelCase")]
    struct Port {
        host_port: u16,
        protocol: String,
        labels: BTreeMap<String, String>,
        inner: Option<Box<Port>>,
        list: Vec<Port>,
    }

    #[test]
    fn keys_match_without_regard_to_case() {
        let port: Port = decode(&json!({"HostPort": 80, "PROTOCOL": "tcp", "Labels": {"A": "b"}})).unwrap();
        assert_eq!((port.host_port, port.protocol.as_str()), (80, "tcp"));
        assert_eq!(port.labels["A"], "b");
    }

    #[test]
    fn an_exact_key_beats_a_folded_one() {
        let port: Port = decode(&json!({"HOSTPORT": 1, "hostPort": 2})).unwrap();
        assert_eq!(port.host_port, 2);
    }

    #[test]
    fn null_is_the_default_and_unknown_keys_are_ignored() {
        let port: Port = decode(&json!({"hostPort": null, "inner": null, "x": [1]})).unwrap();
        assert_eq!(port, Port::default());
    }

    #[test]
    fn an_error_names_path_value_and_what_is_wanted() {
        let error =
            decode::<Port>(&json!({"inner": {"list": [{}, {"hostport": "x"}]}})).unwrap_err().to_string();
        assert_eq!(
            error,
            r#"inner.list[1].hostPort: the value "x" is wrong; wanted is a whole number from 0 to 65535"#
        );
        let error = decode::<Port>(&json!({"hostPort": 70000})).unwrap_err().to_string();
        assert!(error.starts_with("hostPort: the value 70000 is wrong"), "{error}");
        let error = decode::<Port>(&json!({"list": {}})).unwrap_err().to_string();
        assert_eq!(error, "list: the value {} is wrong; wanted is a list");
    }
}
