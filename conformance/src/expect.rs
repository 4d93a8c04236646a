//! Comparisons whose failure says what was wanted and what was found.

use std::fmt::{Debug, Display};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Both values are the same.
pub fn equal<A: PartialEq<B> + Debug, B: Debug>(what: impl Display, found: A, wanted: B) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    bail!("{what}\n  wanted: {wanted:?}\n  found:  {found:?}")
}

/// Both JSON values are the same.
pub fn same_json(what: impl Display, found: &Value, wanted: &Value) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    bail!("{what}\n  wanted: {wanted}\n  found:  {found}")
}

/// The condition holds.
pub fn holds(condition: bool, what: impl Display) -> Result<()> {
    if condition { Ok(()) } else { bail!("{what}") }
}

/// The text has the part somewhere.
pub fn contains(what: impl Display, text: &str, part: &str) -> Result<()> {
    if text.contains(part) {
        return Ok(());
    }
    bail!("{what}\n  wanted: something with {part:?}\n  found:  {text:?}")
}

/// The text has the part nowhere.
pub fn lacks(what: impl Display, text: &str, part: &str) -> Result<()> {
    if !text.contains(part) {
        return Ok(());
    }
    bail!("{what}\n  wanted: nothing with {part:?}\n  found:  {text:?}")
}

/// The member of an object or array at a JSON pointer (RFC 6901); an error if it is not there.
pub fn at<'a>(value: &'a Value, pointer: &str) -> Result<&'a Value> {
    value.pointer(pointer).with_context(|| format!("{pointer} is missing in {value}"))
}

/// The string at a JSON pointer; an error if there is none.
pub fn text_at<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    at(value, pointer)?.as_str().with_context(|| format!("{pointer} is not a string in {value}"))
}

/// The list at a JSON pointer; an error if there is none.
pub fn list_at<'a>(value: &'a Value, pointer: &str) -> Result<&'a Vec<Value>> {
    at(value, pointer)?.as_array().with_context(|| format!("{pointer} is not a list in {value}"))
}

/// How long something may take that comes in its own time. Only a case that fails waits for all of it, so it is as
/// long as the busiest machine needs.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Tries again until the attempt succeeds, as long as [`PATIENCE`]: for what the kernel does in its own time.
pub fn soon<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("not within {PATIENCE:?}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
