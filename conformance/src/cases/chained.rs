//! A plugin type that stands in a chain more than once.

use anyhow::Result;
use serde_json::{Value, json};

use super::cases;
use super::networks::USUAL;
use crate::call::Call;
use crate::expect::same_json;
use crate::pod::Pod;
use crate::sandbox::Sandbox;

cases! {
    "chained" {
        each_entry_of_a_type_answers_for_itself;
        a_new_previous_result_is_echoed;
        without_a_chain_another_configuration_starts_anew;
    }
}

/// An entry of a chain; the plugin does not know the key, but it tells one entry from another.
fn entry(pod: &Pod, entry: u32) -> Call {
    let config = json!({"cniVersion": USUAL, "name": "lo-net", "type": "loopback", "entry": entry});
    Call::new("loopback").id("c1").ifname("lo").netns(pod).config(config)
}

fn prev(address: &str) -> Value {
    json!({
        "cniVersion": USUAL,
        "interfaces": [{"name": "eth0", "sandbox": "/pod"}],
        "ips": [{"interface": 0, "address": address}],
    })
}

fn each_entry_of_a_type_answers_for_itself(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    for _ in 0..2 {
        for (number, address) in [(1, "10.1.0.5/24"), (2, "10.1.0.6/24"), (3, "10.1.0.7/24")] {
            let result = entry(&pod, number).add().prev(&prev(address)).run(host)?.result()?;
            same_json(format!("result of entry {number}"), &result, &prev(address))?;
        }
    }
    entry(&pod, 3).del().run(host)?.silence()?;
    entry(&pod, 2).del().run(host)?.silence()
}

fn a_new_previous_result_is_echoed(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    for address in ["10.1.0.5/24", "10.1.0.6/24"] {
        let result = entry(&pod, 1).add().prev(&prev(address)).run(host)?.result()?;
        same_json("result", &result, &prev(address))?;
    }
    Ok(())
}

fn without_a_chain_another_configuration_starts_anew(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let first = entry(&pod, 1).add().run(host)?.result()?;
    let second = entry(&pod, 2).add().run(host)?.result()?;
    same_json("result", &second, &first)
}
