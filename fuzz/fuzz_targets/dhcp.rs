//! What comes from DHCP servers, and what callers say to the daemon.
//!
//! The first byte says which: a packet, or the bytes of a connection, which come in two pieces.

#![no_main]

use bridgehead::dhcp::message::Message;
use bridgehead::dhcp::rpc::End;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| match data.split_first() {
    Some((b'p', packet)) => read_packet(packet),
    Some((_, bytes)) => read_calls(bytes),
    None => {}
});

fn read_packet(packet: &[u8]) {
    let Some(message) = Message::from_packet(packet) else { return };
    let _ = (message.kind(), message.server());
    let options = &message.options;
    for code in 0..=u8::MAX {
        let _ = (options.byte(code), options.seconds(code), options.addresses(code), options.text(code));
    }
    let lengths = options.classless_routes().into_iter().flatten().chain(options.static_routes());
    for (_, len, _) in lengths {
        assert!(len <= 32);
    }
    assert!(options.prefix_len().is_none_or(|len| len <= 32));
}

fn read_calls(bytes: &[u8]) {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let mut end = End::default();
    let mut is_greeted = false;
    for piece in [first, second] {
        end.arrive(piece);
        if !is_greeted {
            match end.greeting() {
                Ok(Some(_)) => is_greeted = true,
                Ok(None) => continue,
                Err(_) => return,
            }
        }
        loop {
            match end.take() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}
