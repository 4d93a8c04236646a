//! Inputs that nearly make sense: configurations and variables, altered by a generator that repeats itself.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// Texts that somebody once put somewhere: too long, too strange, or right elsewhere. No name of a plugin is among
/// them, and no path that matters.
const TEXTS: [&str; 40] = [
    "",
    " ",
    "0",
    "-1",
    "true",
    "null",
    "\0",
    "a\0b",
    "a\nb",
    "a b",
    "ä",
    "\u{202e}\u{fffd}",
    "%s%n%x",
    "$(true)",
    "../..",
    "/",
    "/run/scratch/data",
    "/proc/self/mem",
    "/dev/null",
    "/run/netns/none",
    "lo",
    "eth0",
    "cni0",
    "sixteen.bytes..1",
    "exactly15bytes.",
    "10.1.0.5",
    "10.1.0.5/16",
    "10.1.0.0/33",
    "10.1.0.0/0",
    "0.0.0.0/0",
    "255.255.255.255/32",
    "127.0.0.1/8",
    "224.0.0.1/4",
    "::ffff:10.1.0.5/112",
    "fe80::1/64",
    "::/0",
    "02:00:00:00:00:01",
    "ff:ff:ff:ff:ff:ff",
    "0.1.0",
    "1.1.0",
];

/// Keys that some plugin reads.
const KEYS: [&str; 35] = [
    "addresses",
    "args",
    "bridge",
    "cniVersion",
    "dataDir",
    "delegateTimeout",
    "dns",
    "enabledad",
    "forceAddress",
    "gateway",
    "gw",
    "hairpinMode",
    "ipMasq",
    "ipMasqBackend",
    "ipam",
    "isGateway",
    "lockTimeout",
    "macspoofchk",
    "mtu",
    "name",
    "nameservers",
    "portIsolation",
    "prevResult",
    "promiscMode",
    "rangeEnd",
    "rangeStart",
    "ranges",
    "resolvConf",
    "routes",
    "runtimeConfig",
    "scope",
    "spoofGuard",
    "subnet",
    "table",
    "vlan",
];

/// Makes inputs out of others. Two with the same number make the same.
#[derive(Debug)]
pub struct Mutator {
    state: u64,
    seeds: Vec<Value>,
}

impl Mutator {
    /// Alters these configurations.
    pub fn new(number: u64, seeds: Vec<Value>) -> Self {
        Self { state: number, seeds }
    }

    /// A number below the limit, which is at least one. SplitMix64: good enough, and the same everywhere.
    pub fn below(&mut self, limit: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) % limit.max(1) as u64) as usize
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Result<&'a T> {
        from.get(self.below(from.len())).context("nothing to choose from")
    }

    /// One of the strange texts.
    pub fn text(&mut self) -> String {
        match self.below(20) {
            0 => "x".repeat(self.below(5000)),
            _ => TEXTS.get(self.below(TEXTS.len())).copied().unwrap_or_default().to_owned(),
        }
    }

    /// A configuration, altered as JSON in one to four places, and sometimes as bytes.
    pub fn config(&mut self) -> Result<Vec<u8>> {
        let mut config = self.seed()?;
        // Mostly one, so that what is wrong is often found late.
        for _ in 0..=self.below(2) * self.below(4) {
            self.alter(&mut config)?;
        }
        let mut bytes = config.to_string().into_bytes();
        if self.below(8) == 0 {
            for _ in 0..=self.below(3) {
                self.alter_bytes(&mut bytes);
            }
        }
        Ok(bytes)
    }

    fn seed(&mut self) -> Result<Value> {
        let index = self.below(self.seeds.len());
        self.seeds.get(index).cloned().context("there are no configurations to alter")
    }

    fn alter(&mut self, config: &mut Value) -> Result<()> {
        let places = places(config);
        let place = self.pick(&places)?.clone();
        match self.below(16) {
            0 => remove(config, &place),
            1 => rename(config, &place, &self.key(&place)),
            2 => {
                let other = self.seed()?;
                let from = self.pick(&self::places(&other))?.clone();
                replace(config, &place, other.pointer(&from).cloned().unwrap_or_default());
            }
            3 => {
                let value = self.value();
                let key = self.key(&place);
                match config.pointer_mut(&place) {
                    Some(Value::Object(map)) => {
                        map.insert(key, value);
                    }
                    Some(Value::Array(list)) => list.push(value),
                    Some(other) => *other = value,
                    None => {}
                }
            }
            4 => {
                let value = config.pointer(&place).cloned().unwrap_or_default();
                let value = match self.below(3) {
                    0 => json!([value]),
                    1 => json!([value, value]),
                    _ => (0..self.below(200)).fold(value, |inner, _| json!([inner])),
                };
                replace(config, &place, value);
            }
            5..=6 => {
                let value = self.nudge(config.pointer(&place).cloned().unwrap_or_default());
                replace(config, &place, value);
            }
            7 => replace(config, &place, self.value()),
            // Of the right type at least, and from another place where it is right.
            _ => {
                let leaves: Vec<&String> =
                    places.iter().filter(|place| config.pointer(place).is_some_and(is_scalar)).collect();
                let place = if leaves.is_empty() { place } else { (*self.pick(&leaves)?).clone() };
                let kind = |value: &Value| std::mem::discriminant(value);
                let own = config.pointer(&place).map(kind);
                let other = self.seed()?;
                let fitting: Vec<Value> = self::places(&other)
                    .iter()
                    .filter_map(|place| other.pointer(place).filter(|value| Some(kind(value)) == own))
                    .cloned()
                    .collect();
                let value = if fitting.is_empty() { self.value() } else { self.pick(&fitting)?.clone() };
                replace(config, &place, value);
            }
        }
        Ok(())
    }

    /// A key that is known, perhaps in other letters, or the place's own in other letters.
    fn key(&mut self, place: &str) -> String {
        let own = place.rsplit('/').next().unwrap_or_default().to_owned();
        let known = KEYS.get(self.below(KEYS.len())).copied().unwrap_or_default();
        match self.below(4) {
            0 => own.to_uppercase(),
            1 => format!("{own}x"),
            2 => known.to_uppercase(),
            _ => known.to_owned(),
        }
    }

    fn value(&mut self) -> Value {
        match self.below(16) {
            0 => Value::Null,
            1 => json!(true),
            2 => json!(false),
            3 => json!(self.below(300)),
            4 => json!(-1),
            5 => json!(1.5),
            6 => json!(u64::MAX),
            7 => json!(i64::MIN),
            8 => json!(1e300),
            9 => json!([]),
            10 => json!({}),
            11 => json!([[{"subnet": self.text()}]]),
            12 => json!({self.text(): self.text()}),
            _ => json!(self.text()),
        }
    }

    /// Nearly the same value.
    fn nudge(&mut self, value: Value) -> Value {
        match value {
            Value::Bool(value) => json!(!value),
            Value::Number(number) => {
                let number = number.as_i64().unwrap_or_default();
                json!(
                    [number.wrapping_add(1), number.wrapping_neg(), number << 16, number << 32]
                        [self.below(4)]
                )
            }
            Value::String(text) => {
                let mut letters: Vec<char> = text.chars().collect();
                let at = self.below(letters.len());
                let other = *b"0129af:./-_ ".get(self.below(12)).unwrap_or(&b'x') as char;
                match (self.below(4), letters.get_mut(at)) {
                    (0, Some(letter)) => *letter = other,
                    (1, Some(_)) => drop(letters.remove(at)),
                    (2, _) => letters.truncate(at),
                    _ => letters.insert(at, other),
                }
                Value::String(letters.into_iter().collect())
            }
            Value::Array(mut list) => {
                list.reverse();
                list.extend(list.first().cloned());
                Value::Array(list)
            }
            other => other,
        }
    }

    fn alter_bytes(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        let end = at + self.below(bytes.len().saturating_sub(at).min(40) + 1);
        match self.below(5) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let again = bytes.get(at..end).unwrap_or_default().to_vec();
                bytes.splice(at..at, again);
            }
            3 => {
                let byte = self.below(256) as u8;
                bytes.insert(at, byte);
            }
            _ => {
                let bit = 1 << self.below(8);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= bit;
                }
            }
        }
    }
}

fn is_scalar(value: &Value) -> bool {
    !value.is_object() && !value.is_array()
}

/// The place of each value in a document, as JSON pointers (RFC 6901).
fn places(document: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![(String::new(), document)];
    while let Some((place, value)) = open.pop() {
        match value {
            Value::Object(map) => open.extend(map.iter().map(|(key, inner)| {
                (format!("{place}/{}", key.replace('~', "~0").replace('/', "~1")), inner)
            })),
            Value::Array(list) => {
                open.extend(
                    list.iter().enumerate().map(|(index, inner)| (format!("{place}/{index}"), inner)),
                );
            }
            _ => {}
        }
        found.push(place);
    }
    found
}

fn replace(document: &mut Value, place: &str, value: Value) {
    if let Some(found) = document.pointer_mut(place) {
        *found = value;
    }
}

fn remove(document: &mut Value, place: &str) {
    take(document, place);
}

fn rename(document: &mut Value, place: &str, name: &str) {
    let Some((parent, _)) = place.rsplit_once('/') else { return };
    let value = take(document, place).unwrap_or_default();
    if let Some(Value::Object(map)) = document.pointer_mut(parent) {
        map.insert(name.to_owned(), value);
    }
}

/// Takes a member out of its object or list; the document itself stays.
fn take(document: &mut Value, place: &str) -> Option<Value> {
    let (parent, key) = place.rsplit_once('/')?;
    let key = key.replace("~1", "/").replace("~0", "~");
    match document.pointer_mut(parent)? {
        Value::Object(map) => map.remove(&key),
        Value::Array(list) => {
            let index = key.parse().ok().filter(|index| *index < list.len())?;
            Some(list.remove(index))
        }
        _ => None,
    }
}

/// The configurations of a list for one plugin, as a runtime derives them.
pub fn configurations(list: &str, plugin: &str) -> Result<Vec<Value>> {
    let list: Map<String, Value> = serde_json::from_str(list)?;
    let plugins = match list.get("plugins") {
        Some(Value::Array(plugins)) => plugins.clone(),
        _ => vec![Value::Object(list.clone())],
    };
    let mut found = Vec::new();
    for mut config in plugins {
        if config["type"] == plugin || config["ipam"]["type"] == plugin {
            for key in ["name", "cniVersion"] {
                config[key] = list.get(key).cloned().unwrap_or_default();
            }
            found.push(config);
        }
    }
    Ok(found)
}
