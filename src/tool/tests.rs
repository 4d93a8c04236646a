use serde_json::{Value, json};

use super::*;
use crate::runtime::recorder::Recorder;

/// What one call of the tool did.
struct Outcome {
    status: u8,
    out: String,
    err: String,
}

impl Outcome {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap()
    }
}

fn tool(args: &[&str], variables: &[(&str, &str)]) -> Outcome {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let variable =
        |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    let status = Terminal { out: &mut out, err: &mut err, detail: Detail::InAWord }
        .run(args.iter().map(OsString::from), &variable);
    Outcome { status, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
}

/// Runs the tool on the recorder's network.
fn on(recorder: &Recorder, args: &[&str]) -> Outcome {
    let (net_dir, bin) = (recorder.net_dir(), recorder.bin());
    let cache = recorder.scratch.path().join("cache");
    let mut line = args.to_vec();
    for (option, value) in [("--net-dir", &net_dir), ("--plugin-dir", &bin), ("--cache-dir", &cache)] {
        line.extend([option, value.to_str().unwrap()]);
    }
    tool(&line, &[])
}

fn network() -> Recorder {
    let recorder = Recorder::new(&["first", "second"]);
    recorder.network(
        r#""cniVersion":"1.1.0","#,
        r#"{"type":"first"},{"type":"second","capabilities":{"mac":true}}"#,
    );
    recorder
}

/// A namespace that is there, whatever the test runs in.
const NETNS: &str = "/proc/self/ns/net";

#[test]
fn a_life_of_an_attachment() {
    let recorder = network();
    let args = ["add", "net", NETNS, "--args", "IgnoreUnknown=1", "--capability-args", r#"{"mac":"x"}"#];
    let added = on(&recorder, &args);
    assert_eq!((added.status, added.err.as_str()), (0, ""));
    assert_eq!(added.json()["dns"]["domain"], "second");
    assert!(added.out.contains("\n    \"cniVersion\": \"1.1.0\","), "{}", added.out);

    for verb in ["check", "del"] {
        recorder.calls();
        let outcome = on(&recorder, &[verb, "net", NETNS]);
        assert_eq!((outcome.status, outcome.out.as_str(), outcome.err.as_str()), (0, "", ""));
        // What only add was told is remembered.
        let calls = recorder.calls();
        let second = calls.iter().find(|call| call["config"]["type"] == "second").unwrap();
        assert_eq!((&second["args"], &second["netns"]), (&json!("IgnoreUnknown=1"), &json!(NETNS)));
        assert_eq!(second["config"]["runtimeConfig"], json!({"mac": "x"}));
        assert!(second["id"].as_str().unwrap().starts_with("cnitool-"));
    }
    assert_eq!(on(&recorder, &["check", "net", NETNS]).status, 1);
}

#[test]
fn the_environment_decides_where_no_option_does() {
    let recorder = network();
    let cache = recorder.scratch.path().join("cache").display().to_string();
    let (net_dir, bin) = (recorder.net_dir().display().to_string(), recorder.bin().display().to_string());
    let path = format!("/nowhere:{bin}");
    let variables = [
        ("NETCONFPATH", net_dir.as_str()),
        ("CNI_PATH", path.as_str()),
        ("CNI_IFNAME", "net1"),
        ("CNI_ARGS", "IP=10.0.0.1"),
        ("CAP_ARGS", r#"{"mac":"x"}"#),
    ];
    let outcome = tool(&["add", "net", NETNS, "--cache-dir", &cache], &variables);
    assert_eq!(outcome.status, 0, "{}", outcome.err);
    let call = &recorder.calls()[1];
    assert_eq!(
        (&call["ifname"], &call["args"], &call["path"]),
        (&json!("net1"), &json!("IP=10.0.0.1"), &json!(path))
    );
    assert_eq!(call["config"]["runtimeConfig"], json!({"mac": "x"}));
    let outcome = tool(&["add", "net", NETNS, "--cache-dir", &cache, "-i", "net2"], &variables);
    assert_eq!((outcome.status, &recorder.calls()[0]["ifname"]), (0, &json!("net2")));
}

#[test]
fn a_failed_add_is_undone_and_told_twice() {
    let recorder = network();
    recorder.fail("second", "ADD");
    let outcome = on(&recorder, &["add", "net", NETNS]);
    assert_eq!(outcome.status, 1);
    assert_eq!(outcome.json(), json!({"code": 123, "msg": "second will not", "details": "told so"}));
    assert!(outcome.err.contains("plugin second failed on ADD: second will not: told so (code 123)"));
    assert!(outcome.err.contains("is undone"), "{}", outcome.err);
    assert_eq!(recorder.verbs(), ["first ADD", "second ADD", "second DEL", "first DEL"]);

    recorder.fail("second", "DEL");
    let outcome = on(&recorder, &["add", "net", NETNS]);
    assert_eq!(outcome.json()["msg"], "second will not");
    assert!(
        outcome.err.contains("undoing what had been done: plugin second failed on DEL"),
        "{}",
        outcome.err
    );
    assert!(outcome.err.contains("something may be left"), "{}", outcome.err);
    assert_eq!(recorder.verbs(), ["first ADD", "second ADD", "second DEL", "first DEL"]);
}

#[test]
fn a_failed_second_add_does_not_take_the_first_away() {
    let recorder = network();
    assert_eq!(on(&recorder, &["add", "net", NETNS]).status, 0);
    recorder.fail("first", "ADD");
    recorder.calls();
    let outcome = on(&recorder, &["add", "net", NETNS]);
    assert!(outcome.err.contains("it was attached before"), "{}", outcome.err);
    assert_eq!(recorder.verbs(), ["first ADD"]);
    assert_eq!(on(&recorder, &["check", "net", NETNS]).status, 0);
}

#[test]
fn nothing_is_undone_where_nothing_was_done() {
    let recorder = network();
    std::fs::remove_file(recorder.bin().join("second")).unwrap();
    let outcome = on(&recorder, &["add", "net", NETNS]);
    assert_eq!(outcome.json()["code"], 106);
    assert!(outcome.err.contains("--plugin-dir or CNI_PATH"), "{}", outcome.err);
    assert!(recorder.calls().is_empty());
}

#[test]
fn a_container_can_be_named_instead_of_its_namespace() {
    let recorder = network();
    assert_eq!(on(&recorder, &["add", "net", NETNS, "--container-id", "c"]).status, 0);
    recorder.calls();
    assert_eq!(on(&recorder, &["check", "net", "--container-id", "c"]).status, 0);
    assert_eq!(on(&recorder, &["del", "net", "--container-id", "c"]).status, 0);
    let calls = recorder.calls();
    assert_eq!(calls.len(), 4);
    assert!(calls.iter().all(|call| call["id"] == "c" && call["netns"] == NETNS));
    // A second DEL knows nothing more of it, which is no error; CHECK cannot do without.
    assert_eq!(on(&recorder, &["del", "net", "--container-id", "c"]).status, 0);
    let outcome = on(&recorder, &["check", "net", "--container-id", "c"]);
    assert!(outcome.err.contains("the network namespace of container c is not known"), "{}", outcome.err);
}

#[test]
fn gc_says_which_are_valid() {
    let recorder = network();
    for id in ["a", "b"] {
        assert_eq!(on(&recorder, &["add", "net", NETNS, "--container-id", id]).status, 0);
    }
    recorder.calls();
    assert_eq!(on(&recorder, &["gc", "net"]).status, 0);
    assert_eq!(recorder.verbs(), ["first GC", "second GC"]);
    assert_eq!(on(&recorder, &["gc", "net", "--valid", "a"]).status, 0);
    let calls = recorder.calls();
    assert_eq!((calls.len(), &calls[0]["id"]), (4, &json!("b")));
    recorder.fail("second", "GC");
    let outcome = on(&recorder, &["gc", "net", "--all"]);
    assert_eq!((outcome.status, &outcome.json()["code"]), (1, &json!(123)));
    assert_eq!(recorder.calls()[2]["config"]["cni.dev/valid-attachments"], json!([]));
}

#[test]
fn old_networks_are_told_what_they_cannot() {
    let recorder = network();
    recorder.network(r#""cniVersion":"1.0.0","disableCheck":true,"#, r#"{"type":"first"}"#);
    assert_eq!(on(&recorder, &["add", "net", NETNS]).status, 0);
    recorder.calls();
    for (args, text) in [
        (&["status", "net"][..], "STATUS is there since 1.1.0; no plugin was asked"),
        (&["gc", "net"], "GC is there since 1.1.0; only known attachments"),
        (&["check", "net", NETNS], "disableCheck; nothing was checked"),
    ] {
        let outcome = on(&recorder, args);
        assert_eq!(outcome.status, 0);
        assert!(outcome.err.contains(text), "{}", outcome.err);
    }
    assert!(recorder.calls().is_empty());
}

#[test]
fn status_and_version_ask_the_plugins() {
    let recorder = network();
    assert_eq!(on(&recorder, &["status", "net"]).status, 0);
    let outcome = on(&recorder, &["version", "net"]);
    assert_eq!(outcome.status, 0);
    let line = format!("first {}/first 1.0.0 1.1.0\n", recorder.bin().display());
    assert!(outcome.out.starts_with(&line), "{}", outcome.out);
    recorder.network(r#""cniVersion":"0.4.0","#, r#"{"type":"first"},{"type":"third"}"#);
    let outcome = on(&recorder, &["version", "net"]);
    assert_eq!(outcome.status, 1);
    assert!(outcome.err.contains("plugin first does not speak 0.4.0"), "{}", outcome.err);
    assert!(outcome.err.contains(r#"cannot find plugin "third""#), "{}", outcome.err);
}

#[test]
fn errors_say_what_to_do() {
    let recorder = network();
    recorder.scratch.file("net.d/00-broken.conflist", "{");
    for (args, status, text) in [
        (&["add", "other", NETNS][..], 1, "00-broken.conflist: it is not JSON"),
        (&["add", "net", "/run/netns/gone.away"], 1, "`ip netns add gone.away` makes one"),
        (&["add", "net", NETNS, "--args", "IP"], 1, "want KEY=VALUE"),
        (&["add", "net", NETNS, "--capability-args", "[]"], 1, "this is not a JSON object"),
        (&["add", "net", NETNS, "-i", "a/b"], 1, "the interface name \"a/b\" has the character '/'"),
        (&["add", "net"], 2, "try `bridgehead add --help`"),
        (&["attach"], 2, "try `bridgehead --help`"),
        (&["status", "net"], 0, "passed over, where libcni would give up"),
    ] {
        let outcome = on(&recorder, args);
        assert_eq!((outcome.status, outcome.out.as_str()), (status, ""), "{args:?}: {}", outcome.err);
        assert!(outcome.err.contains(text), "{args:?}: {}", outcome.err);
    }
    std::fs::remove_file(recorder.net_dir().join("00-broken.conflist")).unwrap();
    let outcome = on(&recorder, &["status", "other"]);
    assert!(outcome.err.contains("there are: net") && outcome.err.contains("NETCONFPATH"), "{}", outcome.err);
}

#[test]
fn help_and_version_are_results() {
    let outcome = tool(&["--help"], &[]);
    assert_eq!((outcome.status, outcome.out.as_str(), outcome.err.as_str()), (0, help::OVERVIEW, ""));
    let outcome = tool(&["gc", "-h"], &[]);
    assert!(outcome.out.starts_with("Remove what attachments left behind"));
    let outcome = tool(&["--version"], &[]);
    assert!(outcome.out.starts_with(concat!("bridgehead ", env!("CARGO_PKG_VERSION"), " (CNI 0.1.0 ")));
}
