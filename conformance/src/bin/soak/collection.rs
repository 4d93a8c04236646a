//! GC beside whatever runs.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use conformance::exec::PATH;
use serde_json::{Value, json};

use crate::attachment::Suite;
use crate::ledger::{Fault, Phase};
use crate::network;
use crate::random::Random;
use crate::worker::Setting;

/// How long the start of a program may take until it waits for its input.
const START: Duration = Duration::from_millis(200);

/// GC of one network, or of all, with the list of what is alive or without any; unless one runs already.
pub(crate) fn collect(setting: &Setting<'_>, random: &mut Random) -> Result<()> {
    let Ok(_alone) = setting.collecting.try_lock() else { return Ok(()) };
    let list = if random.percent(80) { List::Given } else { List::None };
    for network in network::served_by(setting.host.plugins()).iter().chain([&network::SECOND]) {
        if random.percent(50) {
            run(setting, network, list)?;
        }
    }
    Ok(())
}

/// GC of all networks with the list of what is alive, while nothing else runs.
pub(crate) fn collect_all(setting: &Setting<'_>) -> Result<()> {
    let mut networks = network::served_by(setting.host.plugins()).iter().chain([&network::SECOND]);
    networks.try_for_each(|network| run(setting, network, List::Given))
}

/// Whether a GC is told what is alive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    Given,
    None,
}

fn run(setting: &Setting<'_>, network: &network::Network, list: List) -> Result<()> {
    let Some(version) = setting.gc_version else { return Ok(()) };
    let ledger = setting.ledger;
    let directory = setting.directory(Suite::Ours);
    let program = directory.join(network.plugin);
    let mut command = Command::new(&program);
    command.env_clear().env("PATH", PATH).env("CNI_PATH", directory).env("CNI_COMMAND", "GC");
    command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let began = Instant::now();
    ledger.note_collection(&format!("GC of {} begins", network.name));
    let mut child = command.spawn().with_context(|| format!("cannot execute {}", program.display()))?;
    // The list is made when the plugin runs and waits for it: what is added from then on is added beside the GC.
    wait_for_sleep(child.id());
    let mut config = network.config(version);
    let mut said = "without a list".to_owned();
    if list == List::Given {
        let list = alive(setting);
        let ids: Vec<&str> = list.iter().filter_map(|entry| entry["containerID"].as_str()).collect();
        said = format!("with {}", ids.join(" "));
        config["cni.dev/valid-attachments"] = json!(list);
    }
    if let Some(mut stdin) = child.stdin.take() {
        // If it has died, its status says so.
        let _ = stdin.write_all(config.to_string().as_bytes());
    }
    let output = child.wait_with_output()?;
    ledger.count(|counts| counts.calls += 1);
    let what = format!("GC of {}", network.name);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    ledger.note_collection(&format!(
        "{what} {said}: {} {stdout} after {:.1?}",
        output.status,
        began.elapsed()
    ));
    if !output.status.success() {
        ledger.broken(Fault::Ours, None, &format!("{what}: {} {stdout}", output.status));
    }
    Ok(())
}

/// The list of attachments as a runtime sees it that does not know yet what becomes of the ADDs that run: these, a GC
/// that has begun while they ran must leave alone.
fn alive(setting: &Setting<'_>) -> Vec<Value> {
    let phases = setting.ledger.phases();
    let is_alive = |phase: &Phase| match phase {
        Phase::Attached => true,
        // It has ended, but its worker has not said so yet.
        Phase::Adding(Some(pid)) => state(*pid).is_none_or(|state| state == 'Z'),
        Phase::Adding(None) | Phase::Leaving => false,
    };
    let alive = phases.iter().filter(|(_, phase)| is_alive(phase));
    alive.map(|((id, ifname), _)| json!({"containerID": id, "ifname": ifname})).collect()
}

fn wait_for_sleep(pid: u32) {
    let deadline = Instant::now() + START;
    while Instant::now() < deadline && state(pid).is_some_and(|state| state != 'S') {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The state of a process (proc_pid_stat(5)); `None` if there is none.
fn state(pid: u32) -> Option<char> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(") ")?.1.chars().next()
}
