//! What files and plugins may hold that nobody wants: more than there is room for, deeper than any stack, and noise.

use serde_json::{Value, json};

use super::scratch::Scratch;
use super::{Invocation, NetworkList, ResultCache, invoke};
use crate::spec::config::MAX_BYTES;
use crate::spec::request::Environment;
use crate::spec::{Attachment, CniError};

/// Nested lists, so deep that a parser which calls itself for each would need megabytes of stack.
const DEPTH: usize = 100_000;

fn deep(key: &str) -> String {
    format!(r#"{{"name":"n","type":"x","{key}":{}{}}}"#, "[".repeat(DEPTH), "]".repeat(DEPTH))
}

fn load(scratch: &Scratch) -> Result<NetworkList, CniError> {
    NetworkList::load(scratch.path(), "n").map(|found| found.list)
}

fn attachment() -> Attachment {
    Attachment { network: "n".into(), container_id: "c".into(), ifname: "eth0".into() }
}

fn execute(script: &str) -> Result<Option<Value>, CniError> {
    let scratch = Scratch::new();
    let program = scratch.program("p", script);
    let environment = Environment { command: "ADD".into(), ..Environment::default() };
    Invocation { program: &program, environment: &environment, stdin: b"", deadline: invoke::DEADLINE }.run()
}

#[test]
fn a_conflist_that_is_too_deep_or_too_long_is_refused() {
    for file in ["a.conflist", "a.conf"] {
        let scratch = Scratch::new();
        scratch.file(file, &deep("x"));
        let error = load(&scratch).unwrap_err();
        assert!(error.code == 6 && error.msg.contains("recursion limit"), "{error}");
        scratch.file(file, &json!({"name": "n", "type": "x", "padding": "x".repeat(MAX_BYTES)}).to_string());
        let error = load(&scratch).unwrap_err();
        assert!(error.code == 6 && error.msg.contains("more than 1048576 bytes"), "{error}");
    }
}

#[test]
fn a_pipe_in_place_of_a_conflist_is_not_waited_for() {
    let scratch = Scratch::new();
    let pipe = scratch.path().join("a.conflist");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(load(&scratch).unwrap_err().code, 5);
}

#[test]
fn a_kept_result_that_is_too_deep_or_too_long_is_an_error_and_none_to_list() {
    let scratch = Scratch::new();
    let cache = ResultCache::new(scratch.path());
    for text in [deep("result"), json!({"padding": "x".repeat(8 << 20)}).to_string()] {
        scratch.file("results/n-c-eth0", &text);
        assert_eq!(cache.load(&attachment()).unwrap_err().code, 105);
        assert!(cache.attachments("n").unwrap().is_empty());
    }
}

#[test]
fn a_plugins_answer_that_is_too_deep_is_no_answer() {
    let script = format!("head -c {DEPTH} /dev/zero | tr '\\0' '['");
    let error = execute(&script).unwrap_err();
    assert!(error.code == 106 && error.msg.contains("recursion limit"), "{error}");
    let error = execute(&format!("{script}; exit 1")).unwrap_err();
    assert!(error.code == 106 && error.msg.contains("no error object"), "{error}");
    assert!(error.msg.len() < 10_000, "{} bytes", error.msg.len());
}
