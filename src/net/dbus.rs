//! Calls to services on the system's D-Bus: as much of the protocol as it takes to ask with strings and to be answered
//! by yes or no (D-Bus Specification 0.42).

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::{Error, Result};

/// Where the bus listens, whatever `DBUS_SYSTEM_BUS_ADDRESS` says: a runtime's environment is not ours to trust.
const SOCKET: &str = "/run/dbus/system_bus_socket";

/// How long an answer may take, counted from the call.
const DEADLINE: Duration = Duration::from_secs(10);

/// Most bytes that an answer may have; the protocol allows 128 MiB.
const MAX_MESSAGE: usize = 1 << 20;

/// Types of messages, a flag, and header fields (section "Message Format").
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const NO_AUTO_START: u8 = 2;
const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_ERROR_NAME: u8 = 4;
const FIELD_REPLY_SERIAL: u8 = 5;
const FIELD_DESTINATION: u8 = 6;
const FIELD_SIGNATURE: u8 = 8;

/// Length of what every message begins with: up to the length of the header fields.
const FRONT: usize = 16;

/// A method of an object on the bus.
#[derive(Clone, Copy, Debug)]
pub struct Method<'a> {
    /// The name of the service.
    pub destination: &'a str,
    /// The object.
    pub path: &'a str,
    /// The interface that has the method.
    pub interface: &'a str,
    /// Its name.
    pub member: &'a str,
}

/// What a service says to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It did as it was told. The value is that of a boolean, if the answer is one.
    Done(Option<bool>),
    /// It refuses: the error's name, and its text.
    Refused(String, String),
}

/// A connection to the system's bus.
#[derive(Debug)]
pub struct Bus {
    stream: UnixStream,
    serial: u32,
}

impl Bus {
    /// Connects; `None` where there is no bus.
    ///
    /// # Errors
    ///
    /// If the bus does not let this program in, or does not speak the protocol.
    pub fn open() -> Result<Option<Self>> {
        let stream = match UnixStream::connect(Path::new(SOCKET)) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            outcome => outcome.map_err(|e| Error::from_io("connect to D-Bus", &e))?,
        };
        let mut bus = Self { stream, serial: 0 };
        let deadline = Instant::now() + DEADLINE;
        bus.authenticate(deadline).map_err(|e| Error::new("authenticate to D-Bus", e))?;
        match bus.call(BUS.method("Hello"), &[])? {
            Answer::Done(_) => Ok(Some(bus)),
            Answer::Refused(_, text) => Err(Error { text, ..Error::new("greet D-Bus", Errno::EACCES) }),
        }
    }

    /// By the identity that the kernel tells the other side (section "Authentication Protocol").
    fn authenticate(&mut self, deadline: Instant) -> std::result::Result<(), Errno> {
        let uid = nix::unistd::geteuid().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.write(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes(), deadline)?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.read(&mut byte, deadline)?;
            line.push(byte[0]);
            if line.len() > 512 {
                return Err(Errno::EPROTO);
            }
        }
        if !line.starts_with(b"OK ") {
            return Err(Errno::EACCES);
        }
        self.write(b"BEGIN\r\n", deadline)
    }

    /// Whether somebody has a name on the bus. Nobody is started for it.
    ///
    /// # Errors
    ///
    /// If the bus does not answer.
    pub fn has_owner(&mut self, name: &str) -> Result<bool> {
        Ok(self.call(BUS.method("NameHasOwner"), &[name])? == Answer::Done(Some(true)))
    }

    /// Calls a method with strings, and waits for the answer.
    ///
    /// # Errors
    ///
    /// If none comes in time, or none that can be understood.
    pub fn call(&mut self, method: Method<'_>, arguments: &[&str]) -> Result<Answer> {
        let failed = |e| Error::new(format!("call {} of {} by D-Bus", method.member, method.destination), e);
        let deadline = Instant::now() + DEADLINE;
        self.serial += 1;
        let serial = self.serial;
        self.write(&encode(method, arguments, serial), deadline).map_err(failed)?;
        loop {
            let message = self.receive(deadline).map_err(failed)?;
            // Signals come, too.
            if let Some(answer) = decode(&message, serial) {
                return Ok(answer);
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> std::result::Result<Vec<u8>, Errno> {
        let mut message = vec![0; FRONT];
        self.read(&mut message, deadline)?;
        let reader = Reader { bytes: &message, is_big: message[0] == b'B' };
        let (body, fields) = (reader.number(4), reader.number(12));
        let (Some(body), Some(fields)) = (body, fields) else { return Err(Errno::EPROTO) };
        let len = (body as usize).saturating_add((fields as usize).next_multiple_of(8)).saturating_add(FRONT);
        if len > MAX_MESSAGE {
            return Err(Errno::EMSGSIZE);
        }
        message.resize(len, 0);
        self.read(&mut message[FRONT..], deadline)?;
        Ok(message)
    }

    fn read(&mut self, mut into: &mut [u8], deadline: Instant) -> std::result::Result<(), Errno> {
        while !into.is_empty() {
            self.stream.set_read_timeout(Some(time_left(deadline)?)).map_err(|e| errno_of(&e))?;
            match self.stream.read(into) {
                Ok(0) => return Err(Errno::ECONNRESET),
                Ok(len) => into = &mut into[len..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(errno_of(&e)),
            }
        }
        Ok(())
    }

    fn write(&mut self, mut bytes: &[u8], deadline: Instant) -> std::result::Result<(), Errno> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(time_left(deadline)?)).map_err(|e| errno_of(&e))?;
            match self.stream.write(bytes) {
                Ok(len) => bytes = &bytes[len..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(errno_of(&e)),
            }
        }
        Ok(())
    }
}

/// The bus itself, as a service on it.
struct Itself;
const BUS: Itself = Itself;

impl Itself {
    fn method(self, member: &str) -> Method<'_> {
        Method {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member,
        }
    }
}

fn time_left(deadline: Instant) -> std::result::Result<Duration, Errno> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Errno::ETIMEDOUT) } else { Ok(left) }
}

fn errno_of(error: &std::io::Error) -> Errno {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Errno::ETIMEDOUT,
        _ => error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
    }
}

fn encode(method: Method<'_>, arguments: &[&str], serial: u32) -> Vec<u8> {
    let mut body = Vec::new();
    arguments.iter().for_each(|argument| push_text(&mut body, argument));
    // Lengths below are of short texts of our own.
    let mut message = vec![b'l', METHOD_CALL, NO_AUTO_START, 1];
    message.extend_from_slice(&(body.len() as u32).to_le_bytes());
    message.extend_from_slice(&serial.to_le_bytes());
    message.extend_from_slice(&[0; 4]);
    let fields = [
        (FIELD_PATH, b'o', method.path),
        (FIELD_INTERFACE, b's', method.interface),
        (FIELD_MEMBER, b's', method.member),
        (FIELD_DESTINATION, b's', method.destination),
    ];
    for (field, kind, text) in fields {
        message.resize(message.len().next_multiple_of(8), 0);
        message.extend_from_slice(&[field, 1, kind, 0]);
        push_text(&mut message, text);
    }
    if !arguments.is_empty() {
        message.resize(message.len().next_multiple_of(8), 0);
        message.extend_from_slice(&[FIELD_SIGNATURE, 1, b'g', 0, arguments.len() as u8]);
        message.extend(arguments.iter().map(|_| b's'));
        message.push(0);
    }
    let fields_len = (message.len() - FRONT) as u32;
    message[12..FRONT].copy_from_slice(&fields_len.to_le_bytes());
    message.resize(message.len().next_multiple_of(8), 0);
    message.extend_from_slice(&body);
    message
}

/// A string: its length, itself, a NUL. In a message, and in a body, it begins at a multiple of four.
fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
}

/// The answer to a call; `None` for any other message.
fn decode(message: &[u8], serial: u32) -> Option<Answer> {
    let reader = Reader { bytes: message, is_big: *message.first()? == b'B' };
    let kind = *message.get(1)?;
    let end = FRONT.checked_add(reader.number(12)? as usize)?;
    let (mut at, mut replies_to, mut name, mut signature) = (FRONT, None, String::new(), String::new());
    while at < end {
        let field = *message.get(at)?;
        let (value_kind, next) = reader.signature(at + 1)?;
        at = match value_kind.as_str() {
            "s" | "o" => {
                let (text, next) = reader.text(next)?;
                if field == FIELD_ERROR_NAME {
                    name = text;
                }
                next
            }
            "g" => {
                let (text, next) = reader.signature(next)?;
                if field == FIELD_SIGNATURE {
                    signature = text;
                }
                next
            }
            "u" => {
                let place = next.next_multiple_of(4);
                if field == FIELD_REPLY_SERIAL {
                    replies_to = reader.number(place);
                }
                place + 4
            }
            _ => return None,
        }
        .next_multiple_of(8);
    }
    if replies_to != Some(serial) {
        return None;
    }
    let body = end.next_multiple_of(8);
    match kind {
        METHOD_RETURN => {
            let is_boolean = signature == "b";
            Some(Answer::Done(is_boolean.then(|| reader.number(body)).flatten().map(|value| value != 0)))
        }
        ERROR => {
            let text =
                if signature.starts_with('s') { reader.text(body).map(|(text, _)| text) } else { None };
            Some(Answer::Refused(name, text.unwrap_or_default()))
        }
        _ => None,
    }
}

/// Reads values at their places; what is not there is `None`.
struct Reader<'a> {
    bytes: &'a [u8],
    is_big: bool,
}

impl Reader<'_> {
    fn number(&self, at: usize) -> Option<u32> {
        let bytes: [u8; 4] = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if self.is_big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    /// A string, and where it ends.
    fn text(&self, at: usize) -> Option<(String, usize)> {
        let at = at.next_multiple_of(4);
        let begin = at + 4;
        let end = begin.checked_add(self.number(at)? as usize)?;
        let text = String::from_utf8_lossy(self.bytes.get(begin..end)?).into_owned();
        Some((text, end + 1))
    }

    /// A signature, which has a shorter length, and where it ends.
    fn signature(&self, at: usize) -> Option<(String, usize)> {
        let end = at + 1 + usize::from(*self.bytes.get(at)?);
        let text = String::from_utf8_lossy(self.bytes.get(at + 1..end)?).into_owned();
        Some((text, end + 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer as a bus would send it: to a call, with an error's name if it is one, and a body.
    fn answer(kind: u8, to: u32, name: Option<&str>, signature: &str, body: &[u8]) -> Vec<u8> {
        let mut message = vec![b'l', kind, 0, 1];
        message.extend_from_slice(&(body.len() as u32).to_le_bytes());
        message.extend_from_slice(&[9, 0, 0, 0, 0, 0, 0, 0]);
        message.extend_from_slice(&[FIELD_REPLY_SERIAL, 1, b'u', 0]);
        message.extend_from_slice(&to.to_le_bytes());
        if let Some(name) = name {
            message.extend_from_slice(&[FIELD_ERROR_NAME, 1, b's', 0]);
            push_text(&mut message, name);
            message.resize(message.len().next_multiple_of(8), 0);
        }
        message.extend_from_slice(&[FIELD_SIGNATURE, 1, b'g', 0, signature.len() as u8]);
        message.extend_from_slice(signature.as_bytes());
        message.push(0);
        let len = (message.len() - FRONT) as u32;
        message[12..16].copy_from_slice(&len.to_le_bytes());
        message.resize(message.len().next_multiple_of(8), 0);
        message.extend_from_slice(body);
        message
    }

    #[test]
    fn a_call_is_written_as_the_specification_says() {
        let method = Method { destination: "a.b", path: "/a", interface: "a.b", member: "C" };
        let message = encode(method, &["xy"], 7);
        let expected = b"l\x01\x02\x01\x07\0\0\0\x07\0\0\0\x44\0\0\0\
            \x01\x01o\0\x02\0\0\0/a\0\0\0\0\0\0\
            \x02\x01s\0\x03\0\0\0a.b\0\0\0\0\0\
            \x03\x01s\0\x01\0\0\0C\0\0\0\0\0\0\0\
            \x06\x01s\0\x03\0\0\0a.b\0\0\0\0\0\
            \x08\x01g\0\x01s\0\0\
            \x02\0\0\0xy\0";
        let (fields, body) = (message.len() - 7 - FRONT, &message[message.len() - 7..]);
        assert_eq!(body, &expected[expected.len() - 7..]);
        assert_eq!(fields % 8, 0);
        assert_eq!(message[FRONT..], expected[FRONT..]);
    }

    #[test]
    fn answers_are_told_apart() {
        let yes = answer(METHOD_RETURN, 3, None, "b", &[1, 0, 0, 0]);
        assert_eq!(decode(&yes, 3), Some(Answer::Done(Some(true))));
        assert_eq!(decode(&yes, 4), None);
        let mut text = Vec::new();
        push_text(&mut text, "ZONE_ALREADY_SET: x");
        let no = answer(ERROR, 3, Some("org.x.Exception"), "s", &text);
        let refused = Answer::Refused("org.x.Exception".into(), "ZONE_ALREADY_SET: x".into());
        assert_eq!(decode(&no, 3), Some(refused));
        for len in 0..no.len() {
            let _ = decode(&no[..len], 3);
        }
    }

    proptest! {
        #[test]
        fn nonsense_is_no_fault(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&message, 1);
        }
    }
}
