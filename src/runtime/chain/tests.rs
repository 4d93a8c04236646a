use super::*;
use crate::runtime::recorder::Recorder;
use crate::spec::config::ValidAttachment;

const V1: &str = r#""cniVersion":"1.1.0","#;

const PLUGINS: &str = r#"{"type":"first","mtu":1400},
    {"type":"second","capabilities":{"mac":true,"ips":true,"bandwidth":false}}"#;

/// Calls `act` with the chain of the recorder's network.
fn with_chain<T>(recorder: &Recorder, act: impl FnOnce(&Chain<'_>) -> T) -> T {
    let list = NetworkList::load(&recorder.net_dir(), "net").unwrap().list;
    let cache = ResultCache::new(&recorder.scratch.path().join("cache"));
    let path = [recorder.bin()];
    act(&Chain { list: &list, path: &path, cache: &cache, deadline: Duration::from_secs(20) })
}

fn two_plugins(keys: &str) -> Recorder {
    let recorder = Recorder::new(&["first", "second"]);
    recorder.network(keys, PLUGINS);
    recorder
}

fn parameters(container_id: &str) -> Parameters {
    let Value::Object(capability_args) =
        json!({"mac": "02:00:00:00:00:01", "bandwidth": {}, "portMappings": []})
    else {
        panic!("an object was written")
    };
    Parameters {
        container_id: container_id.into(),
        ifname: "eth0".into(),
        netns: "/nowhere/netns".into(),
        args: vec![["IgnoreUnknown".into(), "1".into()], ["IP".into(), "10.0.0.1".into()]],
        capability_args,
    }
}

fn cached(recorder: &Recorder, container_id: &str) -> Option<Entry> {
    let attachment = parameters(container_id).attachment("net");
    with_chain(recorder, |chain| chain.cache.load(&attachment)).unwrap()
}

#[test]
fn add_hands_each_result_to_the_next_and_keeps_the_last() {
    let recorder = two_plugins(V1);
    let result = with_chain(&recorder, |chain| chain.add(&parameters("c"))).unwrap();
    assert_eq!(result["dns"]["domain"], "second");
    let calls = recorder.calls();
    assert_eq!(calls.len(), 2);
    assert_eq!(
        calls[0],
        json!({
            "call": "first ADD", "id": "c", "netns": "/nowhere/netns", "ifname": "eth0",
            "args": "IgnoreUnknown=1;IP=10.0.0.1", "path": recorder.bin(),
            "config": {"type": "first", "mtu": 1400, "name": "net", "cniVersion": "1.1.0"},
        })
    );
    let config = &calls[1]["config"];
    assert_eq!(config["prevResult"]["dns"]["domain"], "first");
    assert_eq!(config["runtimeConfig"], json!({"mac": "02:00:00:00:00:01"}));
    let entry = cached(&recorder, "c").unwrap();
    assert_eq!((entry.parameters, entry.result), (parameters("c"), result));
    assert_eq!(entry.config, std::fs::read(recorder.net_dir().join("net.conflist")).unwrap());
}

#[test]
fn add_stops_at_the_first_error_and_returns_it_unchanged() {
    let recorder = two_plugins(V1);
    recorder.fail("first", "ADD");
    let failure = with_chain(&recorder, |chain| chain.add(&parameters("c"))).unwrap_err();
    assert_eq!(failure.error.code, 123);
    assert_eq!(failure.to_string(), "plugin first failed on ADD: first will not: told so");
    assert_eq!(recorder.verbs(), ["first ADD"]);
    assert_eq!(cached(&recorder, "c"), None);
}

#[test]
fn add_executes_nothing_unless_all_plugins_are_there() {
    let recorder = two_plugins(V1);
    std::fs::remove_file(recorder.bin().join("second")).unwrap();
    let failure = with_chain(&recorder, |chain| chain.add(&parameters("c"))).unwrap_err();
    assert_eq!((failure.plugin.as_deref(), failure.error.code), (Some("second"), 106));
    assert!(recorder.calls().is_empty());
}

#[test]
fn add_wants_a_result_that_can_be_read() {
    let recorder = Recorder::new(&[]);
    recorder.network(V1, r#"{"type":"p"}"#);
    for (script, text) in [
        ("true", "without a result"),
        (r#"echo '{"cniVersion":"7.0.0"}'"#, r#"unknown CNI version "7.0.0""#),
        (r#"echo '{"cniVersion":"1.0.0","ips":7}'"#, "ips: the value 7 is wrong"),
    ] {
        recorder.scratch.program("bin/p", script);
        let failure = with_chain(&recorder, |chain| chain.add(&parameters("c"))).unwrap_err();
        assert!(failure.to_string().contains(text), "{failure}");
    }
    recorder.scratch.program("bin/p", "echo null");
    let result = with_chain(&recorder, |chain| chain.add(&parameters("c"))).unwrap();
    assert_eq!(Value::Object(result), json!({"cniVersion": "1.1.0"}));
}

#[test]
fn a_result_of_another_shape_is_converted_for_the_next_plugin() {
    let recorder = two_plugins(r#""cniVersion":"0.4.0","#);
    with_chain(&recorder, |chain| chain.add(&parameters("c"))).unwrap();
    let prev_result = &recorder.calls()[1]["config"]["prevResult"];
    assert_eq!(
        (&prev_result["cniVersion"], &prev_result["ips"][0]["version"]),
        (&json!("0.4.0"), &json!("4"))
    );
}

#[test]
fn del_goes_backwards_with_the_result_and_forgets_it() {
    let recorder = two_plugins(V1);
    with_chain(&recorder, |chain| chain.add(&parameters("c"))).unwrap();
    recorder.calls();
    with_chain(&recorder, |chain| chain.del(&parameters("c"))).unwrap();
    let calls = recorder.calls();
    let verbs: Vec<&Value> = calls.iter().map(|call| &call["call"]).collect();
    assert_eq!(verbs, ["second DEL", "first DEL"]);
    for call in &calls {
        assert_eq!(call["config"]["prevResult"]["dns"]["domain"], "second");
    }
    assert_eq!(cached(&recorder, "c"), None);
}

#[test]
fn del_of_what_is_not_known_and_of_old_versions_has_no_result() {
    let recorder = two_plugins(V1);
    with_chain(&recorder, |chain| chain.del(&parameters("c"))).unwrap();
    assert!(recorder.calls().iter().all(|call| call["config"].get("prevResult").is_none()));

    recorder.scratch.file("cache/results/net-c-eth0", "half a fi");
    with_chain(&recorder, |chain| chain.del(&parameters("c"))).unwrap();
    assert!(recorder.calls().iter().all(|call| call["config"].get("prevResult").is_none()));
    assert_eq!(cached(&recorder, "c"), None);

    recorder.network(r#""cniVersion":"0.3.1","#, PLUGINS);
    with_chain(&recorder, |chain| chain.add(&parameters("c"))).unwrap();
    recorder.calls();
    with_chain(&recorder, |chain| chain.del(&parameters("c"))).unwrap();
    assert!(recorder.calls().iter().all(|call| call["config"].get("prevResult").is_none()));
    assert_eq!(cached(&recorder, "c"), None);
}

#[test]
fn del_stops_at_the_first_error_and_remembers() {
    let recorder = two_plugins(V1);
    with_chain(&recorder, |chain| chain.add(&parameters("c"))).unwrap();
    recorder.calls();
    recorder.fail("second", "DEL");
    assert!(with_chain(&recorder, |chain| chain.del(&parameters("c"))).is_err());
    assert_eq!(recorder.verbs(), ["second DEL"]);
    assert!(cached(&recorder, "c").is_some());
}

#[test]
fn check_goes_forward_with_the_last_result() {
    let recorder = two_plugins(V1);
    let failure = with_chain(&recorder, |chain| chain.check(&parameters("c"))).unwrap_err();
    assert_eq!((failure.plugin, failure.error.code), (None, 105));
    with_chain(&recorder, |chain| chain.add(&parameters("c"))).unwrap();
    recorder.calls();
    with_chain(&recorder, |chain| chain.check(&parameters("c"))).unwrap();
    let calls = recorder.calls();
    assert_eq!(calls[0]["call"], "first CHECK");
    assert_eq!(calls[0]["config"]["prevResult"]["dns"]["domain"], "second");
    recorder.fail("first", "CHECK");
    assert_eq!(with_chain(&recorder, |chain| chain.check(&parameters("c"))).unwrap_err().error.code, 123);
    recorder.calls();
    recorder.network(r#""cniVersion":"1.1.0","disableCheck":true,"#, PLUGINS);
    with_chain(&recorder, |chain| chain.check(&parameters("c"))).unwrap();
    assert!(recorder.calls().is_empty());
    recorder.network(r#""cniVersion":"0.3.1","#, PLUGINS);
    assert_eq!(with_chain(&recorder, |chain| chain.check(&parameters("c"))).unwrap_err().error.code, 1);
}

fn only(container_ids: &[&str]) -> ValidAttachments {
    ValidAttachments::Only(
        container_ids
            .iter()
            .map(|id| ValidAttachment { container_id: (*id).into(), ifname: "eth0".into() })
            .collect(),
    )
}

#[test]
fn gc_detaches_what_is_stale_and_then_tells_the_plugins() {
    let recorder = two_plugins(V1);
    for container_id in ["c1", "c2"] {
        with_chain(&recorder, |chain| chain.add(&parameters(container_id))).unwrap();
    }
    recorder.calls();
    assert_eq!(with_chain(&recorder, |chain| chain.gc(&only(&["c1"]))), []);
    let calls = recorder.calls();
    let verbs: Vec<&Value> = calls.iter().map(|call| &call["call"]).collect();
    assert_eq!(verbs, ["second DEL", "first DEL", "first GC", "second GC"]);
    assert_eq!((&calls[0]["id"], &calls[0]["args"]), (&json!("c2"), &json!("IgnoreUnknown=1;IP=10.0.0.1")));
    for call in &calls[2..] {
        assert_eq!((&call["id"], &call["config"]["name"]), (&json!(""), &json!("net")));
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            assert_eq!(call["config"][key], json!([{"containerID": "c1", "ifname": "eth0"}]));
        }
    }
    assert!(cached(&recorder, "c1").is_some());
    assert!(cached(&recorder, "c2").is_none());
}

#[test]
fn gc_without_a_list_spares_those_whose_namespace_lives() {
    let recorder = two_plugins(V1);
    with_chain(&recorder, |chain| chain.add(&parameters("dead"))).unwrap();
    let alive = Parameters { netns: "/proc/self/ns/net".into(), ..parameters("alive") };
    with_chain(&recorder, |chain| chain.add(&alive)).unwrap();
    recorder.calls();
    assert_eq!(with_chain(&recorder, |chain| chain.gc(&ValidAttachments::NotGiven)), []);
    let calls = recorder.calls();
    assert_eq!((calls.len(), &calls[0]["id"]), (4, &json!("dead")));
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        assert_eq!(calls[2]["config"].get(key), None);
    }
    assert!(cached(&recorder, "alive").is_some());
    assert!(cached(&recorder, "dead").is_none());
}

#[test]
fn gc_goes_on_past_errors_and_reports_all() {
    let recorder = two_plugins(V1);
    with_chain(&recorder, |chain| chain.add(&parameters("c"))).unwrap();
    recorder.calls();
    recorder.fail("second", "DEL");
    recorder.fail("first", "GC");
    let failures = with_chain(&recorder, |chain| chain.gc(&only(&[])));
    let texts: Vec<String> = failures.iter().map(Failure::to_string).collect();
    assert_eq!(
        texts,
        [
            "plugin second failed on DEL of container c interface eth0 on network net: second will not: told so",
            "plugin first failed on GC: first will not: told so",
        ]
    );
    assert_eq!(recorder.verbs(), ["second DEL", "first GC", "second GC"]);
}

#[test]
fn gc_can_be_forbidden_and_is_unknown_to_old_versions() {
    let recorder = two_plugins(r#""cniVersion":"1.0.0","#);
    with_chain(&recorder, |chain| chain.add(&parameters("c"))).unwrap();
    recorder.calls();
    recorder.network(r#""cniVersion":"1.1.0","disableGC":"true","#, PLUGINS);
    assert_eq!(with_chain(&recorder, |chain| chain.gc(&only(&[]))), []);
    assert!(recorder.calls().is_empty());
    recorder.network(r#""cniVersion":"1.0.0","#, PLUGINS);
    assert_eq!(with_chain(&recorder, |chain| chain.gc(&only(&[]))), []);
    assert_eq!(recorder.verbs(), ["second DEL", "first DEL"]);
}

#[test]
fn status_stops_at_the_first_that_is_not_ready() {
    let recorder = two_plugins(V1);
    with_chain(&recorder, |chain| chain.status()).unwrap();
    assert_eq!(recorder.verbs(), ["first STATUS", "second STATUS"]);
    recorder.fail("first", "STATUS");
    assert_eq!(with_chain(&recorder, |chain| chain.status()).unwrap_err().error.code, 123);
    assert_eq!(recorder.verbs(), ["first STATUS"]);
    recorder.network(r#""cniVersion":"1.0.0","#, PLUGINS);
    with_chain(&recorder, |chain| chain.status()).unwrap();
    assert!(recorder.calls().is_empty());
}

#[test]
fn every_generation_of_plugins_tells_its_versions() {
    let recorder = Recorder::new(&[]);
    recorder.network(V1, r#"{"type":"p"}"#);
    for (script, versions) in [
        (r#"echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'"#, vec!["0.4.0", "1.0.0"]),
        (r#"echo '{"cniVersion":"0.2.0"}'"#, vec!["0.1.0", "0.2.0"]),
        (r#"echo '{"code":4,"msg":"unknown CNI_COMMAND: VERSION"}'; exit 1"#, vec!["0.1.0"]),
    ] {
        recorder.scratch.program("bin/p", script);
        let (program, answer) = with_chain(&recorder, |chain| chain.versions().remove(0).answer).unwrap();
        assert_eq!(
            (program, answer),
            (recorder.bin().join("p"), versions.into_iter().map(Into::into).collect())
        );
    }
    for script in ["true", "echo '{}'", r#"echo '{"cniVersion":"1.0.0"}'"#] {
        recorder.scratch.program("bin/p", script);
        let spoken = with_chain(&recorder, |chain| chain.versions().remove(0));
        assert_eq!(spoken.answer.unwrap_err().error.code, 106, "{script}");
    }
}
