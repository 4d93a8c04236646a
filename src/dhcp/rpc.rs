//! Calls of the daemon as Go's `net/rpc` makes them over HTTP, so that the daemon and the plugin of the reference
//! understand ours: a greeting in HTTP, then for each call a header and arguments, and back a header and an answer.

use super::gob::{Decoder, Encoder, Malformed, Struct, Type, Value, uint};

/// Where the daemon of the reference listens too.
pub const SOCKET: &str = "/run/cni/dhcp.sock";

/// What a client says first, and what it must hear.
pub const GREETING: &str = "CONNECT /_goRPC_ HTTP/1.0\n\n";
/// What the daemon answers.
pub const WELCOME: &str = "HTTP/1.0 200 Connected to Go RPC\n\n";

/// Methods of the daemon.
pub mod method {
    /// Get a lease, or the one that is there.
    pub const ALLOCATE: &str = "DHCP.Allocate";
    /// Give it back.
    pub const RELEASE: &str = "DHCP.Release";
    /// The lease that is there. Not in the reference.
    pub const LOOK: &str = "DHCP.Look";
    /// Whose leases there are. Not in the reference.
    pub const LIST: &str = "DHCP.List";
}

/// How the reference's daemon begins its answer to a call of what it does not know.
pub const UNKNOWN_METHOD: &str = "rpc: can't find method ";

/// Most bytes that one message may have; the configuration is in one.
const LONGEST: usize = (1 << 20) + (1 << 16);

/// `rpc.Request`.
pub const REQUEST: Struct =
    Struct { id: 65, name: "Request", fields: &[("ServiceMethod", Type::Text), ("Seq", Type::Uint)] };

/// `rpc.Response`, with what the error object of CNI has besides.
pub const RESPONSE: Struct = Struct {
    id: 66,
    name: "Response",
    fields: &[
        ("ServiceMethod", Type::Text),
        ("Seq", Type::Uint),
        ("Error", Type::Text),
        ("Code", Type::Uint),
    ],
};

/// `skel.CmdArgs`.
pub const ARGUMENTS: Struct = Struct {
    id: 67,
    name: "CmdArgs",
    fields: &[
        ("ContainerID", Type::Text),
        ("Netns", Type::Text),
        ("IfName", Type::Text),
        ("Args", Type::Text),
        ("Path", Type::Text),
        ("NetnsOverride", Type::Text),
        ("StdinData", Type::Bytes),
    ],
};

const NETWORK: Struct =
    Struct { id: 69, name: "IPNet", fields: &[("IP", Type::Bytes), ("Mask", Type::Bytes)] };
const ADDRESS: Struct = Struct {
    id: 71,
    name: "IPConfig",
    fields: &[("Address", Type::Struct(&NETWORK)), ("Gateway", Type::Bytes)],
};
const ROUTE: Struct = Struct {
    id: 72,
    name: "Route",
    fields: &[
        ("Dst", Type::Struct(&NETWORK)),
        ("GW", Type::Bytes),
        ("Priority", Type::Int),
        ("Scope", Type::Int),
    ],
};
const DNS: Struct = Struct {
    id: 73,
    name: "DNS",
    fields: &[("Nameservers", Type::List(74, &Type::Text)), ("Domain", Type::Text)],
};

/// `types100.Result`, as far as an IPAM fills it.
pub const RESULT: Struct = Struct {
    id: 75,
    name: "Result",
    fields: &[
        ("CNIVersion", Type::Text),
        ("IPs", Type::List(76, &Type::Struct(&ADDRESS))),
        ("Routes", Type::List(77, &Type::Struct(&ROUTE))),
        ("DNS", Type::Struct(&DNS)),
    ],
};

const ATTACHMENT: Struct =
    Struct { id: 78, name: "Attachment", fields: &[("ContainerID", Type::Text), ("IfName", Type::Text)] };

/// The answer to [`method::LIST`].
pub const ATTACHMENTS: Struct =
    Struct { id: 80, name: "Attachments", fields: &[("All", Type::List(79, &Type::Struct(&ATTACHMENT)))] };

/// One end of a connection: what has come and was not read yet, and what both streams have defined.
#[derive(Debug, Default)]
pub struct End {
    arrived: Vec<u8>,
    decoder: Decoder,
    encoder: Encoder,
}

impl End {
    /// Takes what has come.
    pub fn arrive(&mut self, bytes: &[u8]) {
        self.arrived.extend_from_slice(bytes);
    }

    /// The greeting, up to and without its empty line; none as long as that has not come.
    pub fn greeting(&mut self) -> Result<Option<String>, Malformed> {
        let end = |mark: &[u8]| {
            self.arrived.windows(mark.len()).position(|it| it == mark).map(|at| (at, at + mark.len()))
        };
        let Some((end, rest)) = [end(b"\n\n"), end(b"\r\n\r\n")].into_iter().flatten().min() else {
            return if self.arrived.len() > 4096 {
                Err(Malformed("the greeting has no end"))
            } else {
                Ok(None)
            };
        };
        let head = String::from_utf8_lossy(self.arrived.get(..end).unwrap_or_default()).into_owned();
        self.arrived.drain(..rest);
        Ok(Some(head))
    }

    /// The next value; none as long as it has not come whole.
    pub fn take(&mut self) -> Result<Option<Value>, Malformed> {
        loop {
            let mut bytes = self.arrived.as_slice();
            // A number has at most nine bytes.
            let len = match uint(&mut bytes) {
                Ok(len) => usize::try_from(len).unwrap_or(usize::MAX),
                Err(_) if self.arrived.len() < 9 => return Ok(None),
                Err(error) => return Err(error),
            };
            if len > LONGEST {
                return Err(Malformed("a message is too long"));
            }
            let Some(message) = bytes.get(..len) else { return Ok(None) };
            let value = self.decoder.decode(message)?;
            let used = self.arrived.len() - bytes.len() + len;
            self.arrived.drain(..used);
            if value.is_some() {
                return Ok(value);
            }
        }
    }

    /// A header and what follows it, as bytes to be sent.
    pub fn encode(&mut self, head: (&'static Struct, &Value), body: (&'static Struct, &Value)) -> Vec<u8> {
        [self.encoder.encode(head.0, head.1), self.encoder.encode(body.0, body.1)].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_in_pieces_is_read_when_it_is_whole() {
        let mut sender = End::default();
        let head = Value::of([("ServiceMethod", Value::text(method::ALLOCATE)), ("Seq", Value::Uint(7))]);
        let body =
            Value::of([("ContainerID", Value::text("c")), ("StdinData", Value::Bytes(vec![b'x'; 300]))]);
        let bytes = sender.encode((&REQUEST, &head), (&ARGUMENTS, &body));
        let mut receiver = End::default();
        receiver.arrive(GREETING.as_bytes());
        assert_eq!(receiver.greeting().unwrap().as_deref(), Some("CONNECT /_goRPC_ HTTP/1.0"));
        let mut read = Vec::new();
        for byte in bytes {
            receiver.arrive(&[byte]);
            read.extend(receiver.take().unwrap());
        }
        assert_eq!(read, [head, body]);
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let mut receiver = End::default();
        receiver.arrive(&[0xfc, 0x7f, 0xff, 0xff, 0xff]);
        assert!(receiver.take().is_err());
        receiver.arrive(&[b'x'; 5000]);
        assert!(receiver.greeting().is_err());
    }
}
