//! What files and plugins may hold that nobody wants: more than there is room for, deeper than any stack, and noise.

use proptest::prelude::*;
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

/// A file that nearly is what it should be: the text with some of its characters replaced, left out or repeated.
fn nearly(text: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let edit = (any::<prop::sample::Index>(), 0..4u8, any::<u8>());
    proptest::collection::vec(edit, 1..6).prop_map(move |edits| {
        let mut bytes = text.as_bytes().to_vec();
        for (at, what, byte) in edits {
            let at = at.index(bytes.len());
            match what {
                0 => bytes[at] = byte,
                1 => bytes[at] = b"{}[],:\"0ntf\\ "[usize::from(byte) % 13],
                2 => {
                    bytes.remove(at);
                }
                _ => bytes.insert(at, bytes[at]),
            }
            bytes.push(b' ');
        }
        bytes
    })
}

const LIST: &str = r#"{"name":"n","cniVersion":"1.0.0","cniVersions":["1.1.0"],"disableCheck":"true","disableGC":false,
    "loadOnlyInlinedPlugins":false,"plugins":[{"type":"bridge","capabilities":{"mac":true}},{"type":"portmap"}]}"#;

const KEPT: &str = r#"{"kind":"cniCacheV1","containerId":"c","config":"e30K","ifName":"eth0","networkName":"n",
    "netns":"/run/netns/c","cniArgs":[["IP","10.1.0.2"]],"capabilityArgs":{"mac":"02:00:00:00:00:01"},
    "result":{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.2/16"}]}}"#;

proptest! {
    #[test]
    fn any_file_is_a_network_or_none(
        list in prop_oneof![nearly(LIST), proptest::collection::vec(any::<u8>(), 0..60)],
        ending in proptest::sample::select(vec!["conflist", "conf", "json"]),
    ) {
        let scratch = Scratch::new();
        std::fs::write(scratch.path().join(format!("a.{ending}")), &list).unwrap();
        if let Ok(found) = load(&scratch) {
            prop_assert_eq!(found.name, "n");
            prop_assert!(!found.plugins.is_empty());
        }
    }

    #[test]
    fn any_file_is_a_kept_result_or_none(
        file in prop_oneof![nearly(KEPT), proptest::collection::vec(any::<u8>(), 0..60)],
    ) {
        let scratch = Scratch::new();
        std::fs::write(scratch.file("results/n-c-eth0", ""), &file).unwrap();
        let cache = ResultCache::new(scratch.path());
        let listed = cache.attachments("n").unwrap();
        match cache.load(&attachment()) {
            Ok(entry) => prop_assert!(entry.is_some()),
            Err(error) => {
                prop_assert_eq!(error.code, 105);
                prop_assert!(listed.is_empty());
            }
        }
    }
}
