//! What a caller may send that makes no sense: whatever it is, the answer is a value or an error, and comes soon.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::config::MAX_BYTES;
use super::request::Environment;
use super::version::{ALL, Family};
use super::{Args, CniResult, Command, NetConf, Request, Version};

const COMMANDS: [Command; 6] =
    [Command::Add, Command::Del, Command::Check, Command::Gc, Command::Status, Command::Version];

#[test]
fn a_configuration_that_is_too_deep_or_too_long_is_refused() {
    let deep = format!(r#"{{"name":"n","x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let error = NetConf::parse(deep.as_bytes()).unwrap_err();
    assert!(error.code == 6 && error.msg.contains("recursion limit"), "{error}");
    let long = json!({"name": "n", "x": "x".repeat(MAX_BYTES)}).to_string();
    assert_eq!(NetConf::parse(long.as_bytes()).unwrap_err().code, 6);
}

/// Text of which a parser may make something.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,12}",
        "[0-9a-f:.]{0,20}(/[0-9]{0,3})?",
        proptest::sample::select(vec![
            "",
            "0.3.1",
            "1.1.0",
            "eth0",
            "host-local",
            "10.1.0.5/16",
            "fd00::5/64",
            "::ffff:10.1.0.5/112",
            "10.1.0.1",
            "02:00:00:00:00:01",
            "\0",
            "a/b",
            "IP",
            "/run",
        ])
        .prop_map(str::to_owned),
    ]
}

/// Keys that are known to some parser, in any case of letters, and others.
fn key() -> impl Strategy<Value = String> {
    let known = [
        "cniVersion",
        "name",
        "type",
        "ipam",
        "prevResult",
        "runtimeConfig",
        "args",
        "cni",
        "mac",
        "ips",
        "ip4",
        "ip6",
        "ip",
        "gateway",
        "address",
        "interface",
        "interfaces",
        "routes",
        "dst",
        "gw",
        "mtu",
        "priority",
        "scope",
        "table",
        "dns",
        "nameservers",
        "sandbox",
        "containerID",
        "ifname",
        "cni.dev/valid-attachments",
        "cni.dev/attachments",
        "capabilities",
        "lockTimeout",
        "delegateTimeout",
        "subnet",
        "ranges",
    ];
    (proptest::sample::select(known.to_vec()), 0..10u8).prop_map(|(key, form)| match form {
        0 => key.to_uppercase(),
        1 => format!("{key}x"),
        _ => key.to_owned(),
    })
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-2i64..300).prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        text().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            object(inner.clone()).prop_map(Value::from),
            object(inner).prop_map(Value::from),
        ]
    })
}

fn object(inner: impl Strategy<Value = Value>) -> impl Strategy<Value = Map<String, Value>> {
    proptest::collection::vec((key(), inner), 0..8).prop_map(|entries| entries.into_iter().collect())
}

/// Everything that can be asked of a configuration.
fn ask(conf: &NetConf) {
    let _ = conf.check_ipam();
    let _ = conf.ipam_lock_timeout();
    let _ = conf.delegate_timeout();
    let _ = conf.valid_attachments();
    let _ = conf.requested_mac(&Args::default());
    if let Ok(Some(result)) = conf.prev_result() {
        assert_same_after(&result, conf.version);
    }
}

/// A result says in its own version what it says, printed and read again.
fn assert_same_after(result: &CniResult, version: Version) {
    if let Ok(printed) = result.to_value(version) {
        let read = CniResult::from_value(&printed, version, "x").unwrap();
        if version.family() == Family::V1 {
            assert_eq!(read, *result);
        }
        assert_eq!(read.to_value(version).unwrap(), printed);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_configuration_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        if let Ok(conf) = NetConf::parse(&bytes) {
            ask(&conf);
        }
    }

    #[test]
    fn any_object_is_a_configuration_or_none(mut object in object(value())) {
        object.entry("name").or_insert(json!("n"));
        if let Err(error) = NetConf::parse(json!(object).to_string().as_bytes()).map(|conf| ask(&conf)) {
            prop_assert!([1, 6, 7].contains(&error.code), "{}", error);
        }
        // As a known version, with something to read in it.
        object.insert("name".into(), json!("n"));
        for version in ALL {
            object.insert("cniVersion".into(), json!(version.as_str()));
            ask(&NetConf::parse(json!(object).to_string().as_bytes()).unwrap());
        }
    }

    #[test]
    fn any_object_is_a_result_of_each_version_or_none(object in object(value()), as_it_says: bool) {
        for version in ALL {
            let mut object = object.clone();
            if !as_it_says {
                object.insert("cniVersion".into(), json!(version.as_str()));
            }
            if let Ok(result) = CniResult::from_value(&Value::Object(object), version, "x") {
                ALL.iter().for_each(|other| assert_same_after(&result, *other));
            }
        }
    }

    #[test]
    fn any_environment_is_valid_or_refused(
        texts in proptest::collection::vec(prop_oneof![text(), Just(String::new()), Just("c1".to_owned())], 6),
        command in 0..7usize,
        args in "([A-Za-z]{0,8}(=\\PC{0,6})?;?){0,5}",
    ) {
        let command = COMMANDS.get(command);
        let environment = Environment {
            command: command.map_or_else(|| texts[0].clone(), |command| command.as_str().to_owned()),
            container_id: texts[1].clone(),
            netns: texts[2].clone(),
            ifname: texts[3].clone(),
            args,
            path: texts[4].clone(),
            netns_override: texts[5].clone(),
        };
        let checked = environment.check();
        prop_assert!(checked.as_ref().map_or_else(|e| e.code == 4, |()| true), "{:?}", checked);
        let stdin = br#"{"name":"n","cniVersion":"1.1.0"}"#.to_vec();
        let command = command.copied().unwrap_or(Command::Add);
        if let Ok(request) = Request::parse(command, &environment, stdin)
            && let Ok(args) = request.args()
        {
            let _ = request.config.requested_mac(&args);
        }
        let is_served = Command::parse(&environment.command).is_some_and(Command::has_attachment);
        if checked.is_ok() && is_served {
            // What becomes part of paths stays inside its directory.
            prop_assert!(!environment.container_id.contains('/') && !environment.ifname.contains('/'));
        }
    }

    #[test]
    fn any_text_is_arguments_or_none(text in "\\PC{0,40}") {
        if let Ok(args) = Args::parse(&text) {
            let _ = args.check_known(&["IP"]);
            prop_assert!(args.get("IP").is_none_or(|value| !value.is_empty()));
        }
    }
}
