//! One connection: calls, one after the other, until it is closed.

use std::io::ErrorKind;
use std::rc::Rc;

use tokio::net::UnixStream;
use tokio::time::timeout;

use super::super::gob::{Malformed, Value};
use super::super::rpc::{End, RESPONSE, RESULT, WELCOME};
use super::{Answer, Daemon, Gain, PATIENCE, first};

/// Serves one connection.
pub(super) async fn serve(daemon: &Rc<Daemon>, stream: UnixStream) -> anyhow::Result<()> {
    let mut end = End::default();
    if !greet(&stream, &mut end).await? {
        return Ok(());
    }
    let mut gain: Option<Gain> = None;
    loop {
        let mut values = Vec::new();
        while values.len() < 2 {
            match end.take().map_err(malformed)? {
                Some(value) => values.push(value),
                None => match receive(&stream, &mut end).await {
                    Ok(true) => {}
                    Ok(false) => return Ok(()),
                    // Unix sockets tell who wrote that the other side closed before it had read all (unix(7)).
                    Err(e) => {
                        if let (Some(gain), true) = (&gain, is_reset(&e)) {
                            daemon.take_back(gain).await;
                        }
                        return Err(e);
                    }
                },
            }
        }
        let [head, arguments] = values.as_slice() else { return Ok(()) };
        let name = head.string("ServiceMethod");
        // A caller that is gone has no use for a lease; it or another comes with a DEL.
        let outcome = match first(daemon.call(&name, arguments), closed(&stream)).await {
            Ok(outcome) => outcome,
            Err(()) => return Ok(()),
        };
        let (error, code, answer) = match outcome {
            Ok(answer) => (String::new(), 0, answer),
            Err(error) => {
                let answer = Answer::new(&RESULT, Value::Struct(Vec::new()));
                (error.to_string(), error.code, answer)
            }
        };
        gain = answer.gain;
        let head = Value::of([
            ("ServiceMethod", Value::text(&name)),
            ("Seq", Value::Uint(head.number("Seq").unsigned_abs())),
            ("Error", Value::text(&error)),
            ("Code", Value::Uint(code.into())),
        ]);
        let bytes = end.encode((&RESPONSE, &head), (answer.of, &answer.body));
        if let Err(e) = send(&stream, &bytes).await {
            if let Some(gain) = &gain {
                daemon.take_back(gain).await;
            }
            return Err(e);
        }
    }
}

fn malformed(error: Malformed) -> anyhow::Error {
    anyhow::anyhow!("it makes no sense: {}", error.0)
}

/// Agrees on the protocol; false where the other side closes instead.
async fn greet(stream: &UnixStream, end: &mut End) -> anyhow::Result<bool> {
    let greeting = loop {
        if let Some(greeting) = end.greeting().map_err(malformed)? {
            break greeting;
        }
        if !receive(stream, end).await? {
            return Ok(false);
        }
    };
    if !greeting.starts_with("CONNECT /_goRPC_ ") {
        send(stream, b"HTTP/1.0 405 must CONNECT\r\nContent-Type: text/plain\r\n\r\n").await?;
        anyhow::bail!("it speaks another protocol");
    }
    send(stream, WELCOME.as_bytes()).await?;
    Ok(true)
}

/// Whether an error says that the other side has gone without reading what it was sent.
fn is_reset(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(cause, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
}

/// Waits for bytes; false where the other side has closed.
async fn receive(stream: &UnixStream, end: &mut End) -> anyhow::Result<bool> {
    let mut chunk = [0; 8192];
    loop {
        timeout(PATIENCE, stream.readable()).await.map_err(|_| anyhow::anyhow!("it says nothing"))??;
        match stream.try_read(&mut chunk) {
            Ok(0) => return Ok(false),
            Ok(len) => {
                end.arrive(chunk.get(..len).unwrap_or_default());
                return Ok(true);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e.into()),
        }
    }
}

async fn send(stream: &UnixStream, mut bytes: &[u8]) -> anyhow::Result<()> {
    while !bytes.is_empty() {
        timeout(PATIENCE, stream.writable()).await.map_err(|_| anyhow::anyhow!("it takes no answer"))??;
        match stream.try_write(bytes) {
            Ok(len) => bytes = bytes.get(len..).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Waits until the other side has closed. It says nothing while it waits for an answer; if it does, that is no caller.
async fn closed(stream: &UnixStream) {
    loop {
        let mut byte = [0];
        let ready = stream.readable().await;
        match stream.try_read(&mut byte) {
            Err(e) if ready.is_ok() && e.kind() == ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}
