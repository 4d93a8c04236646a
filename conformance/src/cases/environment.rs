//! How a plugin is called: variables and stdin, and what it says of errors in them.

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::cases;
use super::networks::{NEWEST, PLUGINS, USUAL, VERSIONS, bridge, gateway4, host_local};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, same_json};
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

cases! {
    "spec/environment" {
        all_missing_variables_are_named_together;
        each_missing_variable_is_named;
        an_empty_variable_is_missing;
        del_needs_no_namespace;
        a_missing_search_path_is_named;
        an_ipam_plugin_does_not_open_the_namespace;
        bad_container_ids_are_refused;
        bad_interface_names_are_refused;
        names_that_linux_gives_to_no_interface_are_refused needs [Need::Plugin("bridgehead")];
        good_names_are_accepted;
        a_variable_that_is_not_text_is_refused;
        unknown_commands_are_refused;
        what_is_no_namespace_is_not_waited_for;
        the_own_namespace_is_refused_before_anything_is_done;
        the_own_namespace_is_allowed_on_request;
    }
    "spec/stdin" {
        garbage_is_a_decoding_failure;
        nothing_is_a_decoding_failure;
        a_closed_stdin_is_an_error_and_no_crash;
        values_of_the_wrong_type_are_decoding_failures;
        a_network_needs_a_name;
        bad_network_names_are_refused;
        an_oversized_configuration_is_refused;
        a_large_configuration_is_accepted;
        unknown_keys_are_ignored;
    }
    "spec/args" {
        unknown_arguments_are_refused_by_name;
        unknown_arguments_are_ignored_on_request;
        what_kubernetes_passes_is_accepted;
        malformed_arguments_are_refused;
        bad_ignore_unknown_is_refused;
    }
    "spec/errors" {
        an_error_says_its_version;
        no_error_is_an_unnamed_internal_one;
    }
}

/// A call of any of the four with a configuration that each accepts.
pub(super) fn any(plugin: &str) -> Call {
    Call::new(plugin).id("c1").ifname("eth0").somewhere().config(json!({
        "cniVersion": USUAL, "name": "net", "type": plugin,
        "ipam": {"type": "host-local", "subnet": "10.1.0.0/24", "addresses": []},
    }))
}

fn all_missing_variables_are_named_together(host: &Sandbox) -> Result<()> {
    for plugin in PLUGINS {
        for command in ["ADD", "CHECK"] {
            let call = any(plugin).command(command);
            let call = call.without("CNI_CONTAINERID").without("CNI_NETNS").without("CNI_IFNAME");
            let refusal = call.run(host)?.refused_with(4)?;
            for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
                contains(format!("{plugin} {command} names what is missing"), &refusal.text(), name)?;
            }
        }
        let refusal =
            any(plugin).del().without("CNI_CONTAINERID").without("CNI_IFNAME").run(host)?.refused_with(4)?;
        for name in ["CNI_CONTAINERID", "CNI_IFNAME"] {
            contains(format!("{plugin} DEL names what is missing"), &refusal.text(), name)?;
        }
    }
    Ok(())
}

fn each_missing_variable_is_named(host: &Sandbox) -> Result<()> {
    for (command, name) in [
        ("ADD", "CNI_CONTAINERID"),
        ("ADD", "CNI_NETNS"),
        ("ADD", "CNI_IFNAME"),
        ("CHECK", "CNI_CONTAINERID"),
        ("CHECK", "CNI_NETNS"),
        ("CHECK", "CNI_IFNAME"),
        ("DEL", "CNI_CONTAINERID"),
        ("DEL", "CNI_IFNAME"),
    ] {
        let refusal = any("host-local").command(command).without(name).run(host)?.refused_with(4)?;
        contains(format!("{command} without {name}"), &refusal.text(), name)?;
        for other in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            holds(
                other == name || !refusal.text().contains(other),
                format!("{command} without {name} names {other} as well: {}", refusal.text()),
            )?;
        }
    }
    Ok(())
}

fn an_empty_variable_is_missing(host: &Sandbox) -> Result<()> {
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        let refusal = any("static").add().env(name, "").run(host)?.refused_with(4)?;
        contains(format!("ADD with empty {name}"), &refusal.text(), name)?;
    }
    Ok(())
}

fn del_needs_no_namespace(host: &Sandbox) -> Result<()> {
    for plugin in PLUGINS {
        any(plugin).del().without("CNI_NETNS").run(host)?.silence().context(plugin)?;
        any(plugin).del().env("CNI_NETNS", "").run(host)?.silence().context(plugin)?;
        let dangling = any(plugin).del().env("CNI_NETNS", "/run/netns/nobody").run(host)?;
        dangling.silence().with_context(|| format!("{plugin}, dangling CNI_NETNS"))?;
    }
    Ok(())
}

fn a_missing_search_path_is_named(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let call = bridge("pod1", &pod, gateway4()).without_path();
    let refusal = call.add().run(host)?.refused_with(4)?;
    contains("ADD without CNI_PATH", &refusal.text(), "CNI_PATH")
}

fn an_ipam_plugin_does_not_open_the_namespace(host: &Sandbox) -> Result<()> {
    // It has no business there, and callers (tests among them) name some that are not there.
    for plugin in ["host-local", "static"] {
        any(plugin).add().env("CNI_NETNS", "/some/where").run(host)?.result().context(plugin)?;
    }
    Ok(())
}

fn bad_container_ids_are_refused(host: &Sandbox) -> Result<()> {
    for id in ["-a", ".a", "_a", "a/b", "../a", "a b", "a:b", "a\n", "ä", "a;b", "a$b", "a\\b"] {
        for command in ["ADD", "DEL", "CHECK"] {
            let answer = any("host-local").command(command).id(id).run(host)?;
            answer.refused_with(4).with_context(|| format!("{command} with container id {id:?}"))?;
        }
    }
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn bad_interface_names_are_refused(host: &Sandbox) -> Result<()> {
    for name in [
        "sixteen.bytes.ab",
        "äääääääö",
        ".",
        "..",
        "a/b",
        "/",
        "a:b",
        "a b",
        " a",
        "a\tb",
        "a\nb",
        "a\u{a0}b",
    ] {
        for command in ["ADD", "DEL", "CHECK"] {
            let answer = any("host-local").command(command).ifname(name).run(host)?;
            answer.refused_with(4).with_context(|| format!("{command} with interface name {name:?}"))?;
        }
    }
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn names_that_linux_gives_to_no_interface_are_refused(host: &Sandbox) -> Result<()> {
    // A pattern would give the interface another name than the one asked for; the last two are directories of sysctls.
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[&pod])?;
    for name in ["%d", "eth%d", "a%sb", "all", "default"] {
        let refusal = bridge("a", &pod, gateway4()).ifname(name).add().run(host)?.refused_with(4)?;
        contains("the error", &refusal.text(), name)?;
        before.restored(host, &[&pod]).with_context(|| format!("interface name {name:?}"))?;
    }
    Ok(())
}

fn good_names_are_accepted(host: &Sandbox) -> Result<()> {
    for id in ["a", "0", "a.b_c-d", "A--", &"x".repeat(200)] {
        any("host-local").add().id(id).run(host)?.result().with_context(|| format!("container id {id:?}"))?;
    }
    for ifname in ["e", "fifteen.bytes.a", "...", "eth0.100", "ä", "a@b"] {
        any("host-local")
            .add()
            .ifname(ifname)
            .run(host)?
            .result()
            .with_context(|| format!("ifname {ifname:?}"))?;
    }
    Ok(())
}

fn a_variable_that_is_not_text_is_refused(host: &Sandbox) -> Result<()> {
    let script = r#"CNI_COMMAND=ADD CNI_CONTAINERID="$(printf 'a\377')" CNI_IFNAME=eth0 CNI_NETNS=/some/where \
        CNI_PATH=/nowhere exec "$0""#;
    let plugin = host.plugins().join("host-local");
    let config = r#"{"cniVersion":"1.0.0","name":"net","ipam":{"type":"host-local","subnet":"10.1.0.0/24"}}"#;
    let finished =
        host.run_with_input(&["sh", "-c", script, &plugin.to_string_lossy()], config.as_bytes())?;
    let error: serde_json::Value =
        serde_json::from_str(&finished.stdout).context("stdout is not a CNI error")?;
    equal(format!("code of {error}"), error["code"].as_u64(), Some(4))
}

fn unknown_commands_are_refused(host: &Sandbox) -> Result<()> {
    for plugin in PLUGINS {
        for command in ["FROBNICATE", "add", "Add", "ADD ", "version"] {
            let refusal = any(plugin).command(command).run(host)?.refused_with(4)?;
            contains(format!("{plugin} {command}"), &refusal.text(), "CNI_COMMAND")?;
        }
    }
    Ok(())
}

fn what_is_no_namespace_is_not_waited_for(host: &Sandbox) -> Result<()> {
    host.run(&["mkfifo", "/run/scratch/fifo"])?;
    std::fs::write("/run/scratch/file", "")?;
    let pod = host.pod("spare")?;
    let before = Snapshot::take(host, &[&pod])?;
    for netns in ["/run/scratch/fifo", "/run/scratch/file", "/run/scratch", "/dev/null", "/proc/self/ns/mnt"]
    {
        let call = bridge("pod1", &pod, gateway4()).env("CNI_NETNS", netns);
        let refusal = call.add().run(host)?.refused_with(8).with_context(|| format!("ADD with {netns}"))?;
        contains(format!("ADD with {netns}"), &refusal.text(), "it is not a network namespace")?;
        before.restored(host, &[&pod]).with_context(|| format!("ADD with {netns}"))?;
        call.del().run(host)?.silence().with_context(|| format!("DEL with {netns}"))?;
    }
    Ok(())
}

fn the_own_namespace_is_refused_before_anything_is_done(host: &Sandbox) -> Result<()> {
    let before = Snapshot::take(host, &[])?;
    for netns in ["/run/netns/host", "/proc/self/ns/net", "/proc/1/ns/net"] {
        let pod = host.pod("spare")?;
        let call = bridge("pod1", &pod, gateway4()).env("CNI_NETNS", netns);
        pod.remove()?;
        call.add().run(host)?.refused_with(8).with_context(|| format!("ADD with {netns}"))?;
        before.restored(host, &[]).with_context(|| format!("ADD with {netns}"))?;
        call.del().run(host)?.refused_with(8).with_context(|| format!("DEL with {netns}"))?;
    }
    let call = host_local("c1", json!({"subnet": "10.1.0.0/24"})).env("CNI_NETNS", "/run/netns/host");
    let refusal = call.add().run(host)?.refused_with(8)?;
    before.restored(host, &[])?;
    holds(!refusal.msg.is_empty(), "it says why")
}

fn the_own_namespace_is_allowed_on_request(host: &Sandbox) -> Result<()> {
    let call = host_local("c1", json!({"subnet": "10.1.0.0/24"})).env("CNI_NETNS", "/run/netns/host");
    for value in ["1", "TRUE", "true", "True"] {
        let call = call.env("CNI_NETNS_OVERRIDE", value);
        call.add().run(host)?.result().with_context(|| format!("CNI_NETNS_OVERRIDE={value}"))?;
        call.del().run(host)?.silence()?;
    }
    for value in ["0", "false", "yes"] {
        let call = call.env("CNI_NETNS_OVERRIDE", value);
        call.add().run(host)?.refused_with(8).with_context(|| format!("CNI_NETNS_OVERRIDE={value}"))?;
    }
    Ok(())
}

fn garbage_is_a_decoding_failure(host: &Sandbox) -> Result<()> {
    for plugin in PLUGINS {
        for text in ["garbage", "{", "[]", "\"text\"", "{\"name\": }", "{} {}", "\u{0}"] {
            let answer = any(plugin).add().stdin(text.as_bytes()).run(host)?;
            answer.refused_with(6).with_context(|| format!("{plugin} with {text:?} on stdin"))?;
        }
        let answer = any(plugin).add().stdin(b"\xff\xfe{}").run(host)?;
        answer.refused_with(6).with_context(|| format!("{plugin} with what is not UTF-8"))?;
    }
    Ok(())
}

fn nothing_is_a_decoding_failure(host: &Sandbox) -> Result<()> {
    for plugin in PLUGINS {
        for command in ["ADD", "DEL", "CHECK"] {
            any(plugin).command(command).stdin(b"").run(host)?.refused_with(6).context(plugin)?;
        }
    }
    Ok(())
}

fn a_closed_stdin_is_an_error_and_no_crash(host: &Sandbox) -> Result<()> {
    let script = r#"CNI_COMMAND=ADD CNI_CONTAINERID=c1 CNI_IFNAME=eth0 CNI_NETNS=/some/where \
        CNI_PATH=/nowhere exec "$0" <&-"#;
    for plugin in PLUGINS {
        let path = host.plugins().join(plugin);
        let finished = host.try_run(&["sh", "-c", script, &path.to_string_lossy()])?;
        let error: serde_json::Value = serde_json::from_str(&finished.stdout)
            .with_context(|| format!("{plugin}: stdout is not a CNI error: {:?}", finished.stdout))?;
        match error["code"].as_u64() {
            Some(5 | 6) => {}
            _ => bail!("{plugin}: wanted code 5 or 6, found {error}"),
        }
    }
    Ok(())
}

fn values_of_the_wrong_type_are_decoding_failures(host: &Sandbox) -> Result<()> {
    let call = any("host-local").add();
    call.set("name", json!(7)).run(host)?.refused_with(6).context("name is a number")?;
    call.set("cniVersion", json!(1.0)).run(host)?.refused_with(6).context("cniVersion is a number")?;
    Ok(())
}

fn a_network_needs_a_name(host: &Sandbox) -> Result<()> {
    for plugin in PLUGINS {
        for command in ["ADD", "DEL", "CHECK"] {
            let answer =
                any(plugin).command(command).stdin(br#"{"cniVersion":"1.0.0","type":"x"}"#).run(host)?;
            answer.refused_with(7).with_context(|| format!("{plugin} {command} without name"))?;
            let answer = any(plugin).command(command).set("name", json!("")).run(host)?;
            answer.refused_with(7).with_context(|| format!("{plugin} {command} with an empty name"))?;
        }
    }
    Ok(())
}

fn bad_network_names_are_refused(host: &Sandbox) -> Result<()> {
    for name in ["-a", ".a", "_a", "a/b", "..", "../../etc", "a b", "a\n", "ä", "a:b"] {
        let refusal = any("host-local").add().set("name", json!(name)).run(host)?.refused_with(7);
        let refusal = refusal.with_context(|| format!("network name {name:?}"))?;
        contains("the name is in the error", &refusal.text(), name.trim())?;
    }
    equal("leases of a network called a", host.leases("a")?, Vec::<String>::new())
}

fn an_oversized_configuration_is_refused(host: &Sandbox) -> Result<()> {
    for plugin in PLUGINS {
        let call = any(plugin).add().set("padding", json!("x".repeat(1 << 20)));
        call.run(host)?.refusal().with_context(|| format!("{plugin} with more than 1 MiB on stdin"))?;
    }
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn a_large_configuration_is_accepted(host: &Sandbox) -> Result<()> {
    let call = any("host-local").add().set("padding", json!("x".repeat((1 << 20) - 2000)));
    call.run(host)?.result().map(drop)
}

fn unknown_keys_are_ignored(host: &Sandbox) -> Result<()> {
    let call = any("host-local")
        .set("cni.dev/unknown", json!({"a": [1, 2, {}]}))
        .set("capabilities", json!({"ips": true, "nonsense": true}))
        .set("runtimeConfig", json!({"nonsense": {"a": null}}))
        .set("args", json!({"cni": {"labels": [{"key": "a", "value": "b"}]}, "org.example": 1}));
    call.add().run(host)?.result()?;
    call.del().run(host)?.silence()
}

fn unknown_arguments_are_refused_by_name(host: &Sandbox) -> Result<()> {
    let call = host_local("c1", json!({"subnet": "10.1.0.0/24"})).add();
    for args in ["FROB=1", "ip=10.1.0.7", "FROB=1;IgnoreUnknown=0", "IgnoreUnknown=false;FROB=1"] {
        let refusal = call.args(args).run(host)?.refusal().with_context(|| format!("CNI_ARGS={args}"))?;
        let key = if args.contains("FROB") { "FROB" } else { "ip" };
        contains(format!("CNI_ARGS={args}"), &refusal.text(), key)?;
    }
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn unknown_arguments_are_ignored_on_request(host: &Sandbox) -> Result<()> {
    let call = host_local("c1", json!({"subnet": "10.1.0.0/24"}));
    for args in [
        "IgnoreUnknown=1;FROB=1",
        "FROB=1;IgnoreUnknown=true",
        "FROB=1;IgnoreUnknown=TRUE",
        "FROB=;IgnoreUnknown=1",
    ] {
        call.add().args(args).run(host)?.result().with_context(|| format!("CNI_ARGS={args}"))?;
        call.del().args(args).run(host)?.silence()?;
    }
    Ok(())
}

fn what_kubernetes_passes_is_accepted(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let call = bridge("pod1", &pod, gateway4()).args(
        "K8S_POD_INFRA_CONTAINER_ID=0123456789abcdef;K8S_POD_UID=6a7b;IgnoreUnknown=1;K8S_POD_NAMESPACE=default;\
         K8S_POD_NAME=web-0",
    );
    call.add().run(host)?.result()?;
    call.del().run(host)?.silence()
}

fn malformed_arguments_are_refused(host: &Sandbox) -> Result<()> {
    let call = host_local("c1", json!({"subnet": "10.1.0.0/24"})).add();
    for args in ["IP", "IP=10.1.0.7;FROB", "IP=a=b", "IP=not-an-address"] {
        call.args(args).run(host)?.refusal().with_context(|| format!("CNI_ARGS={args}"))?;
    }
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn bad_ignore_unknown_is_refused(host: &Sandbox) -> Result<()> {
    let call = host_local("c1", json!({"subnet": "10.1.0.0/24"})).add();
    call.args("IgnoreUnknown=perhaps").run(host)?.refusal().map(drop)
}

fn an_error_says_its_version(host: &Sandbox) -> Result<()> {
    for version in VERSIONS {
        let call = host_local("c1", json!({"subnet": "10.1.0.0/31"})).add().set("cniVersion", json!(version));
        let refusal = call.run(host)?.refusal()?;
        same_json("cniVersion of the error", &refusal.json["cniVersion"], &json!(version))?;
    }
    Ok(())
}

fn no_error_is_an_unnamed_internal_one(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let good = bridge("pod1", &pod, gateway4());
    let pool = || host_local("c1", json!({"subnet": "10.1.0.0/24"}));
    let fixed = |address: &str| super::networks::fixed(json!({"addresses": [{"address": address}]})).add();
    let calls = [
        ("a namespace that is not there", good.add().env("CNI_NETNS", "/run/netns/none")),
        ("a namespace that is a file", good.add().env("CNI_NETNS", "/etc/passwd")),
        (
            "hairpin and promiscuous",
            good.add().set("hairpinMode", json!(true)).set("promiscMode", json!(true)),
        ),
        ("a VLAN that cannot be", good.add().set("vlan", json!(5000))),
        ("a bridge that is not one", good.add().set("bridge", json!("lo"))),
        ("an IPAM plugin that is not there", good.add().set("ipam", json!({"type": "absent"}))),
        ("an unknown back end", good.add().set("ipMasq", json!(true)).set("ipMasqBackend", json!("x"))),
        ("no prevResult", good.check()),
        ("no ipam", pool().add().set("ipam", json!(null))),
        ("no ranges", host_local("c1", json!({})).add()),
        ("a subnet too small", host_local("c1", json!({"subnet": "10.1.0.0/31"})).add()),
        ("a subnet that is none", host_local("c1", json!({"subnet": "x"})).add()),
        ("an argument that is no address", pool().add().args("IP=x")),
        ("an address out of range", pool().add().args("IP=10.9.9.9")),
        ("nothing reserved", pool().check().set("cniVersion", json!(NEWEST))),
        (
            "an unreadable resolv.conf",
            host_local("c1", json!({"subnet": "10.1.0.0/24", "resolvConf": "/none"})).add(),
        ),
        ("no prefix", fixed("10.0.0.1")),
    ];
    for (what, call) in calls {
        let refusal = call.run(host)?.refusal().context(what)?;
        holds(
            refusal.code != 999 && refusal.code < 900,
            format!("{what}: code {}: {}", refusal.code, refusal.msg),
        )?;
    }
    Ok(())
}
