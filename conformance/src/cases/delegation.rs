//! How bridge calls its IPAM plugin.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{NEWEST, USUAL, bridge, gateway4, with};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{at, contains, equal, holds, same_json, text_at};
use crate::pod::Pod;
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

cases! {
    "spec/delegation" {
        the_error_of_ipam_comes_out_unchanged;
        ipam_that_prints_garbage_is_an_error;
        ipam_that_fails_without_a_word_is_an_error;
        ipam_that_cannot_be_found_is_an_error;
        ipam_that_cannot_be_executed_is_an_error;
        ipam_that_does_not_end_is_killed needs [Need::Plugin("bridgehead")];
        a_wrong_delegate_timeout_is_refused_but_by_del needs [Need::Plugin("bridgehead")];
        a_path_is_no_plugin_type;
        ipam_gets_the_same_variables_and_bytes;
        the_first_on_the_search_path_is_executed;
        a_foreign_host_local_is_executed;
        ipam_finds_the_interface_up_and_connected;
        ipam_is_told_to_delete_while_the_interface_is_there needs [Need::Plugin("bridgehead")];
        ipam_is_told_to_delete_when_it_failed;
        ipam_is_told_to_delete_when_it_gave_no_address;
        ipam_is_told_to_delete_when_a_later_step_fails;
        a_failure_while_undoing_is_reported_too needs [Need::Plugin("bridgehead")];
        a_record_that_cannot_be_deleted_is_reported_too needs [Need::Plugin("bridgehead")];
        an_ipam_result_of_an_older_version_is_converted;
        an_ipam_result_without_version_is_understood;
        what_ipam_says_on_stderr_is_no_answer;
        an_error_of_ipam_in_del_is_reported_after_all_else_is_removed;
        an_error_of_ipam_in_check_is_reported;
        an_error_of_ipam_in_status_is_reported;
        gc_reaches_ipam;
    }
}

/// Prints a result with the address 10.30.0.5.
const GOOD: &str =
    r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.30.0.5/24","gateway":"10.30.0.1"}]}'"#;

/// An IPAM plugin called `fake` that writes its verb to /run/scratch/verbs, then goes on with the script.
fn fake(host: &Sandbox, script: &str) -> Result<()> {
    host.fake_plugin(
        "fakes",
        "fake",
        &format!("echo $CNI_COMMAND >> /run/scratch/verbs\ncat > /run/scratch/stdin\n{script}"),
    )?;
    Ok(())
}

/// Does something only on ADD; every other verb succeeds.
fn on_add(script: &str) -> String {
    format!("[ $CNI_COMMAND = ADD ] || exit 0\n{script}")
}

fn attachment(host: &Sandbox, pod: &Pod) -> Call {
    let path = format!("/run/scratch/fakes:{}", host.plugins().display());
    bridge("pod1", pod, json!({"ipam": {"type": "fake"}})).env("CNI_PATH", &path)
}

fn verbs() -> Vec<String> {
    fs::read_to_string("/run/scratch/verbs").unwrap_or_default().lines().map(str::to_owned).collect()
}

fn the_error_of_ipam_comes_out_unchanged(host: &Sandbox) -> Result<()> {
    let wanted =
        json!({"cniVersion": USUAL, "code": 123, "msg": "no luck today", "details": "the moon is full"});
    fake(host, &on_add(&format!("echo '{wanted}'; echo noise >&2; exit 3")))?;
    let pod = host.pod("p")?;
    let before = Snapshot::take(host, &[&pod])?;
    let refusal = attachment(host, &pod).add().run(host)?.refused_with(123)?;
    for key in ["code", "msg", "details"] {
        same_json(key, &refusal.json[key], &wanted[key])?;
    }
    before.restored(host, &[&pod])
}

/// ADD fails, says something with that word, and leaves nothing.
fn fails_cleanly(host: &Sandbox, call: &Call, pod: &Pod, word: &str) -> Result<()> {
    let before = Snapshot::take(host, &[pod])?;
    let refusal = call.add().run(host)?.refusal()?;
    contains("the error", &refusal.text(), word)?;
    before.restored(host, &[pod])
}

fn ipam_that_prints_garbage_is_an_error(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    for script in [
        "echo garbage",
        "echo '[]'",
        "echo '{\"ips\": 7}'",
        "echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"x\"}]}'",
    ] {
        fake(host, &on_add(script))?;
        fails_cleanly(host, &attachment(host, &pod), &pod, "").with_context(|| script.to_owned())?;
    }
    Ok(())
}

fn ipam_that_fails_without_a_word_is_an_error(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    fake(host, &on_add("exit 7"))?;
    fails_cleanly(host, &attachment(host, &pod), &pod, "fake").context("nothing printed")?;
    fake(host, &on_add("echo 'the disk is on fire' >&2; exit 7"))?;
    fails_cleanly(host, &attachment(host, &pod), &pod, "the disk is on fire")
        .context("words on stderr only")?;
    fake(host, &on_add("kill -9 $$"))?;
    fails_cleanly(host, &attachment(host, &pod), &pod, "fake").context("killed")?;
    fake(host, &on_add(&format!("{GOOD}\nkill -9 $$")))?;
    fails_cleanly(host, &attachment(host, &pod), &pod, "signal: 9")
        .context("killed when it had its result")?;
    fake(host, &on_add("echo '{\"msg\":\"out of luck\"}'; exit 1"))?;
    fails_cleanly(host, &attachment(host, &pod), &pod, "out of luck").context("an error without a code")
}

fn ipam_that_cannot_be_found_is_an_error(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let call = attachment(host, &pod).set("ipam", json!({"type": "absent"}));
    fails_cleanly(host, &call, &pod, "absent")?;
    fails_cleanly(host, &call, &pod, "/run/scratch/fakes")
}

fn ipam_that_cannot_be_executed_is_an_error(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    host.scratch("fakes/fake", "not a program")?;
    fails_cleanly(host, &attachment(host, &pod), &pod, "fake")
}

fn ipam_that_does_not_end_is_killed(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    fake(host, &on_add("sleep 30"))?;
    let began = std::time::Instant::now();
    fails_cleanly(
        host,
        &attachment(host, &pod).set("delegateTimeout", json!(1)),
        &pod,
        "1 s and was killed",
    )?;
    equal("ended in time", began.elapsed().as_secs() < 10, true)
}

/// Every plugin that has an IPAM, with what it cannot do without.
fn with_ipam() -> [(&'static str, Value); 9] {
    [
        ("bridge", json!({})),
        ("bridgehead", json!({})),
        ("dummy", json!({})),
        ("host-device", json!({"device": "up0"})),
        ("ipvlan", json!({"master": "up0"})),
        ("macvlan", json!({"master": "up0"})),
        ("ptp", json!({})),
        ("tap", json!({})),
        ("vlan", json!({"master": "up0", "vlanId": 5})),
    ]
}

fn a_wrong_delegate_timeout_is_refused_but_by_del(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    fake(host, "exit 0")?;
    for (plugin, more) in with_ipam() {
        let base = json!({"cniVersion": NEWEST, "name": "net", "type": plugin, "ipam": {"type": "fake"}});
        let path = format!("/run/scratch/fakes:{}", host.plugins().display());
        let call = Call::new(plugin).id("pod1").ifname("eth0").netns(&pod).env("CNI_PATH", &path);
        let call = call.config(with(base, more));
        let said = format!("the error of {plugin}");
        for value in [json!(0), json!(-1), json!(1.5), json!("9"), json!(3601)] {
            let call = call.set("delegateTimeout", value.clone());
            for verb in [call.add(), call.status()] {
                let refusal = verb.run(host)?.refused_with(7)?;
                let wanted =
                    format!("delegateTimeout: the value {value} is wrong; wanted is a number of seconds");
                contains(&said, &refusal.text(), &wanted)?;
                contains(&said, &refusal.text(), "from 1 to 3600")?;
            }
            equal("the calls of the IPAM", verbs(), Vec::<String>::new())?;
            call.gc().set("cni.dev/valid-attachments", json!([])).run(host)?.silence()?;
            call.del().run(host)?.silence()?;
            equal("the calls of the IPAM", verbs(), ["GC", "DEL"])?;
            fs::remove_file("/run/scratch/verbs")?;
        }
    }
    Ok(())
}

fn a_path_is_no_plugin_type(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    fake(host, GOOD)?;
    for kind in ["/run/scratch/fakes/fake", "../fakes/fake", "./fake"] {
        let call = attachment(host, &pod).set("ipam", json!({"type": kind}));
        fails_cleanly(host, &call, &pod, "").with_context(|| kind.to_owned())?;
    }
    equal("calls of the plugin", verbs(), Vec::<String>::new())
}

/// What an IPAM plugin that speaks to the network sees of the pod's interface.
const LOOK: &str = "nsenter --net=$CNI_NETNS ip -o link show eth0 > /run/scratch/seen-by-$CNI_COMMAND 2>&1";

fn ipam_finds_the_interface_up_and_connected(host: &Sandbox) -> Result<()> {
    fake(host, &format!("{LOOK}\n{GOOD}"))?;
    let pod = host.pod("p")?;
    let result = attachment(host, &pod).add().run(host)?.result()?;
    let seen = fs::read_to_string("/run/scratch/seen-by-ADD")?;
    contains("eth0 as IPAM saw it on ADD", &seen, "LOWER_UP")?;
    let mac = pod.need_link("eth0")?["address"].clone();
    contains("eth0 as IPAM saw it on ADD", &seen, mac.as_str().unwrap_or_default())?;
    let told = result["interfaces"].as_array().into_iter().flatten().find(|it| it["name"] == "eth0");
    equal("the MAC address in the result", told.map(|it| it["mac"].clone()), Some(mac))?;
    equal("addresses", pod.addresses("eth0")?, vec!["10.30.0.5/24".to_owned()])
}

/// Otherwise an address could not be given back over the network that it is from.
fn ipam_is_told_to_delete_while_the_interface_is_there(host: &Sandbox) -> Result<()> {
    fake(host, &format!("{LOOK}\n{GOOD}"))?;
    let pod = host.pod("p")?;
    let call = attachment(host, &pod);
    for without_record in [false, true] {
        call.add().run(host)?.result()?;
        if without_record {
            fs::remove_dir_all("/run/bridgehead/attachments")?;
        }
        call.del().run(host)?.silence()?;
        contains("eth0 as IPAM saw it on DEL", &fs::read_to_string("/run/scratch/seen-by-DEL")?, "LOWER_UP")?;
        holds(pod.link("eth0")?.is_none(), "eth0 is still there after DEL")?;
    }
    Ok(())
}

fn ipam_gets_the_same_variables_and_bytes(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    fake(host, &format!("env | grep ^CNI_ | sort > /run/scratch/env\n{GOOD}"))?;
    // Order, spacing and numbers as they are: what is sent on is what was received.
    let config = format!(
        "{{ \"type\":\"bridge\",\"zeta\":1.50,\n\"name\":\"net\" ,\"cniVersion\":\"{USUAL}\",\"bridge\":\"cni0\",\
         \"ipam\":{{\"type\":\"fake\",\"big\":12345678901234567890}} }}"
    );
    let call = attachment(host, &pod).args("IgnoreUnknown=1;A=b").stdin(config.as_bytes());
    call.add().run(host)?.result()?;
    equal("stdin of IPAM", fs::read_to_string("/run/scratch/stdin")?, config)?;
    let path = format!("CNI_PATH=/run/scratch/fakes:{}", host.plugins().display());
    let environment = fs::read_to_string("/run/scratch/env")?;
    for line in [
        "CNI_COMMAND=ADD",
        "CNI_CONTAINERID=pod1",
        "CNI_IFNAME=eth0",
        "CNI_NETNS=/run/netns/p",
        "CNI_ARGS=IgnoreUnknown=1;A=b",
        path.as_str(),
    ] {
        holds(
            environment.lines().any(|found| found == line),
            format!("IPAM lacks {line}; it has\n{environment}"),
        )?;
    }
    Ok(())
}

fn the_first_on_the_search_path_is_executed(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    fake(host, GOOD)?;
    host.fake_plugin("later", "fake", "exit 9")?;
    fs::create_dir_all("/run/scratch/earlier/fake")?;
    let path = "/run/scratch/none:/run/scratch/earlier:/run/scratch/fakes:/run/scratch/later";
    attachment(host, &pod).env("CNI_PATH", path).add().run(host)?.result().map(drop)
}

fn a_foreign_host_local_is_executed(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    host.fake_plugin("fakes", "host-local", GOOD)?;
    let mut network = gateway4();
    network["isDefaultGateway"] = json!(false);
    let path = format!("/run/scratch/fakes:{}", host.plugins().display());
    let result = bridge("pod1", &pod, network).env("CNI_PATH", &path).add().run(host)?.result()?;
    equal("address", text_at(&result, "/ips/0/address")?, "10.30.0.5/24")
}

fn ipam_is_told_to_delete_when_it_failed(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    fake(host, &on_add("echo '{\"code\":123,\"msg\":\"no\"}'; exit 1"))?;
    attachment(host, &pod).add().run(host)?.refused_with(123)?;
    equal("calls of IPAM", verbs(), ["ADD", "DEL"])
}

fn ipam_is_told_to_delete_when_it_gave_no_address(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    for answer in ["{\"cniVersion\":\"1.0.0\"}", "{\"cniVersion\":\"1.0.0\",\"ips\":[]}", "{}", "null"] {
        fake(host, &on_add(&format!("echo '{answer}'")))?;
        fails_cleanly(host, &attachment(host, &pod), &pod, "").with_context(|| answer.to_owned())?;
        equal(format!("calls of IPAM, {answer}"), verbs(), ["ADD", "DEL"])?;
        fs::remove_file("/run/scratch/verbs")?;
    }
    Ok(())
}

fn ipam_is_told_to_delete_when_a_later_step_fails(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let answer = json!({
        "cniVersion": USUAL, "ips": [{"address": "10.30.0.5/24"}],
        "routes": [{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}],
    });
    fake(host, &on_add(&format!("echo '{answer}'")))?;
    fails_cleanly(host, &attachment(host, &pod), &pod, "198.51.100.0")?;
    equal("calls of IPAM", verbs(), ["ADD", "DEL"])
}

/// What went wrong first gives the error its code and message, and what went wrong while undoing it is in the details.
fn reports_both(host: &Sandbox, call: &Call, first: &str, then: &str) -> Result<()> {
    let refusal = call.add().run(host)?.refusal()?;
    contains("the message", &refusal.msg, first)?;
    contains("the details", &refusal.details, then)
}

fn a_failure_while_undoing_is_reported_too(host: &Sandbox) -> Result<()> {
    const STUBBORN: &str = r#"echo '{"cniVersion":"1.0.0","code":124,"msg":"I let nothing go"}'; exit 1"#;
    let pod = host.pod("p")?;
    let on_del = format!("[ $CNI_COMMAND = DEL ] && {{ {STUBBORN}; }}");
    let far = r#""routes":[{"dst":"198.51.100.0/24","gw":"203.0.113.1"}]"#;
    fake(
        host,
        &format!(
            "{on_del}\necho '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.30.0.5/24\"}}],{far}}}'"
        ),
    )?;
    let call = attachment(host, &pod);
    reports_both(host, &call, "198.51.100.0", "I let nothing go").context("a step after IPAM's")?;
    fake(host, &format!("{on_del}\necho '{{\"code\":123,\"msg\":\"no luck today\"}}'; exit 1"))?;
    // Another attachment: of the first, something is left that must go before.
    let other = call.ifname("eth1");
    reports_both(host, &other, "no luck today", "I let nothing go").context("IPAM itself")
}

fn a_record_that_cannot_be_deleted_is_reported_too(host: &Sandbox) -> Result<()> {
    let freeze = "mount --bind /run/bridgehead /run/bridgehead && mount -o remount,bind,ro /run/bridgehead";
    fake(host, &on_add(&format!("{freeze}\necho '{{\"code\":123,\"msg\":\"no luck today\"}}'; exit 1")))?;
    let pod = host.pod("p")?;
    let call = attachment(host, &pod);
    reports_both(host, &call, "no luck today", "Read-only file system")?;
    host.run(&["umount", "/run/bridgehead"])?;
    call.del().run(host)?.silence()
}

fn an_ipam_result_of_an_older_version_is_converted(host: &Sandbox) -> Result<()> {
    for (answer, pod) in [
        (
            json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.30.0.5/24", "gateway": "10.30.0.1",
            "routes": [{"dst": "198.51.100.0/24"}]}}),
            "a",
        ),
        (
            json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.30.0.5/24", "gateway": "10.30.0.1"}],
            "routes": [{"dst": "198.51.100.0/24"}]}),
            "b",
        ),
    ] {
        let pod = host.pod(pod)?;
        fake(host, &on_add(&format!("echo '{answer}'")))?;
        let call = attachment(host, &pod);
        let result = call.add().run(host)?.result()?;
        let wanted = json!([{"interface": 2, "address": "10.30.0.5/24", "gateway": "10.30.0.1"}]);
        same_json("ips", at(&result, "/ips")?, &wanted)?;
        equal("route", text_at(&result, "/routes/0/dst")?, "198.51.100.0/24")?;
        call.del().run(host)?.silence()?;
    }
    Ok(())
}

fn an_ipam_result_without_version_is_understood(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    fake(host, &on_add(r#"echo '{"ips":[{"address":"10.30.0.5/24"}]}'"#))?;
    let result = attachment(host, &pod).add().run(host)?.result()?;
    equal("address", text_at(&result, "/ips/0/address")?, "10.30.0.5/24")
}

fn what_ipam_says_on_stderr_is_no_answer(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    fake(host, &format!("echo 'thinking hard' >&2\n{}", on_add(GOOD)))?;
    attachment(host, &pod).add().run(host)?.result().map(drop)
}

fn an_error_of_ipam_in_del_is_reported_after_all_else_is_removed(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    fake(
        host,
        &format!(
            "[ $CNI_COMMAND = DEL ] && {{ echo '{{\"code\":123,\"msg\":\"not now\"}}'; exit 1; }}\n{GOOD}"
        ),
    )?;
    let call = attachment(host, &pod).set("ipMasq", json!(true));
    let result = call.add().run(host)?.result()?;
    let refusal = call.del().prev(&result).run(host)?.refusal()?;
    contains("the error", &refusal.text(), "not now")?;
    equal("links in the pod", pod.link_names()?, ["lo"])?;
    let rules = host.run(&["nft", "-s", "list", "ruleset"])?;
    holds(!rules.contains("10.30.0.5"), format!("masquerade rules are left:\n{rules}"))
}

fn an_error_of_ipam_in_check_is_reported(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    fake(
        host,
        &format!(
            "[ $CNI_COMMAND = CHECK ] && {{ echo '{{\"code\":123,\"msg\":\"lost it\"}}'; exit 1; }}\n{GOOD}"
        ),
    )?;
    let call = attachment(host, &pod);
    let result = call.add().run(host)?.result()?;
    let refusal = call.check().prev(&result).run(host)?.refusal()?;
    contains("the error", &refusal.text(), "lost it")
}

fn an_error_of_ipam_in_status_is_reported(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    fake(
        host,
        "[ $CNI_COMMAND = STATUS ] && { echo '{\"code\":51,\"msg\":\"worn out\"}'; exit 1; }\nexit 0",
    )?;
    let call = attachment(host, &pod).set("cniVersion", json!(NEWEST));
    let refusal = call.status().run(host)?.refused_with(51)?;
    contains("the error", &refusal.text(), "worn out")
}

fn gc_reaches_ipam(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    fake(host, "exit 0")?;
    let call = attachment(host, &pod).set("cniVersion", json!(NEWEST));
    call.gc().set("cni.dev/valid-attachments", Value::Array(Vec::new())).run(host)?.silence()?;
    equal("calls of IPAM", verbs(), ["GC"])
}
