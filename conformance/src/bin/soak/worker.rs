//! A worker: a runtime's thread that attaches, checks and detaches pods of its own on networks that all share.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use conformance::call::{Answer, Call};
use conformance::sandbox::Sandbox;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::attachment::{Attachment, Key, Suite, Tenant, addresses};
use crate::ledger::{Fault, Ledger, Phase};
use crate::network::{self, NETWORKS, Network, SECOND};
use crate::random::Random;

/// How often DEL is called until it succeeds. Real runtimes never give up; what does not succeed by then, never does.
const RETRIES: usize = 8;

/// What workers do, and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    /// Of a hundred calls, so many are killed.
    pub(crate) kills: usize,
    /// Of a hundred pods, so many lose their namespace before or during a call.
    pub(crate) vanishes: usize,
    /// Of a hundred steps, so many are a GC; none where the plugins have no GC.
    pub(crate) collections: usize,
}

/// What all workers of a scenario have in common.
#[derive(Debug)]
pub(crate) struct Setting<'a> {
    /// The host.
    pub(crate) host: &'a Sandbox,
    /// What the runtime knows.
    pub(crate) ledger: &'a Ledger,
    /// The other directory of plugins, if there are two at work.
    pub(crate) reference: Option<PathBuf>,
    /// Version of the protocol, and that for a GC, if there is one.
    pub(crate) version: &'static str,
    pub(crate) gc_version: Option<&'static str>,
    /// What is done how often.
    pub(crate) habits: Habits,
    /// How many pods a worker has at most.
    pub(crate) pods: usize,
    /// Held during a GC: a runtime has one at a time.
    pub(crate) collecting: Mutex<()>,
}

impl Setting<'_> {
    /// The directory of plugins.
    pub(crate) fn directory(&self, suite: Suite) -> &Path {
        match (suite, &self.reference) {
            (Suite::Reference, Some(reference)) => reference,
            _ => self.host.plugins(),
        }
    }

    /// Whose fault it is if something is wrong that these have done together.
    pub(crate) fn fault_of(&self, suites: &[Suite]) -> Fault {
        if suites.iter().all(|suite| *suite == Suite::Reference) { Fault::Reference } else { Fault::Ours }
    }

    /// Whose fault it is if something of an attachment is left or missing.
    pub(crate) fn fault_of_attachment(&self, attachment: &Attachment) -> Fault {
        self.fault_of(&[attachment.suites.0, attachment.suites.1])
    }
}

/// What happens to a plugin while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disturbance {
    None,
    Kill,
    Vanish,
}

/// How a call ended.
enum End {
    /// The plugin answered.
    Answered(Answer),
    /// It was killed as was meant.
    Killed,
    /// It crashed or hung, which was said already.
    Failed,
}

/// One of the workers.
#[derive(Debug)]
pub(crate) struct Worker {
    place: usize,
    random: Random,
    number: usize,
    /// Its pods.
    pub(crate) tenants: Vec<Tenant>,
    /// How long ADD and DEL take, about.
    usual: [Duration; 2],
}

impl Worker {
    /// A worker without pods; its place among them is part of its containers' IDs.
    pub(crate) fn new(place: usize, random: Random) -> Self {
        Self { place, random, number: 0, tenants: Vec::new(), usual: [Duration::from_millis(10); 2] }
    }

    /// Does one thing.
    pub(crate) fn step(&mut self, setting: &Setting<'_>) -> Result<()> {
        if self.random.percent(setting.habits.collections) {
            return crate::collection::collect(setting, &mut self.random);
        }
        let dice = self.random.below(100);
        if self.tenants.is_empty() || (dice < 45 && self.tenants.len() < setting.pods) {
            return self.add(setting);
        }
        let index = self.random.below(self.tenants.len());
        if dice < 65 {
            return self.check(setting, index);
        }
        let tenant = self.tenants.swap_remove(index);
        self.delete(setting, tenant)
    }

    /// Removes all that it has.
    pub(crate) fn finish(&mut self, setting: &Setting<'_>) -> Result<()> {
        while let Some(tenant) = self.tenants.pop() {
            self.delete(setting, tenant)?;
        }
        Ok(())
    }

    fn suites(&mut self, setting: &Setting<'_>) -> (Suite, Suite) {
        let mut choose = || match &setting.reference {
            Some(_) if self.random.percent(50) => Suite::Reference,
            _ => Suite::Ours,
        };
        (choose(), choose())
    }

    fn add(&mut self, setting: &Setting<'_>) -> Result<()> {
        let first = self.random.pick(networks(setting)).map(|network| ("eth0", network));
        let mut wanted: Vec<(&'static str, &'static Network)> = first.into_iter().collect();
        if self.random.percent(12) {
            wanted.push(("net1", &SECOND));
        }
        let tenant = self.new_tenant(setting)?;
        self.attach_all(setting, tenant, &wanted)
    }

    /// A pod that is not attached to anything yet.
    pub(crate) fn new_tenant(&mut self, setting: &Setting<'_>) -> Result<Tenant> {
        self.number += 1;
        Tenant::new(&format!("soakw{:03}n{:05}", self.place, self.number), setting.host)
    }

    /// Attaches a pod to networks, and cleans up after what fails.
    pub(crate) fn attach_all(
        &mut self,
        setting: &Setting<'_>,
        mut tenant: Tenant,
        wanted: &[(&'static str, &'static Network)],
    ) -> Result<()> {
        let id = tenant.id.clone();
        let suites = self.suites(setting);
        setting.ledger.assign(&id, suites);
        for &(ifname, network) in wanted {
            let netns = tenant.pod.as_ref().map(|pod| pod.netns().to_owned()).unwrap_or_default();
            tenant.attachments.push(Attachment::new(&id, ifname, &netns, network, setting.version, suites));
            let disturbance = self.disturbance(setting, suites.0, &tenant);
            match self.attach(setting, &mut tenant, disturbance)? {
                Attached::Yes if tenant.pod.is_some() => {}
                // The runtime has died together with the plugin, and knows nothing of the pod.
                Attached::Perhaps if setting.habits.collections > 0 && self.random.percent(10) => {
                    setting.ledger.note(&id, "is forgotten by the runtime");
                    self.forget(setting, tenant)?;
                    return Ok(());
                }
                Attached::No if self.random.percent(50) => {
                    // After an error nothing is left, so nothing needs to be deleted.
                    if let Some(refused) = tenant.attachments.pop() {
                        setting.ledger.gone(&refused.key);
                    }
                    return self.delete(setting, tenant);
                }
                _ => return self.delete(setting, tenant),
            }
        }
        self.tenants.push(tenant);
        Ok(())
    }

    /// Other namespaces and other attachments of a pod that is forgotten are left for a GC, too.
    fn forget(&mut self, setting: &Setting<'_>, mut tenant: Tenant) -> Result<()> {
        tenant.vanish()?;
        for attachment in &tenant.attachments {
            setting.ledger.enter(&attachment.key, Phase::Leaving);
            setting.ledger.gone(&attachment.key);
        }
        Ok(())
    }

    fn disturbance(&mut self, setting: &Setting<'_>, suite: Suite, tenant: &Tenant) -> Disturbance {
        // Of the reference a delegated plugin goes on when its caller is killed, and reserves an address even after
        // the DEL. That is known, and would hide everything else.
        let may_kill = suite == Suite::Ours;
        if may_kill && self.random.percent(setting.habits.kills) {
            Disturbance::Kill
        } else if tenant.pod.is_some() && self.random.percent(setting.habits.vanishes) {
            Disturbance::Vanish
        } else {
            Disturbance::None
        }
    }

    /// ADD of the newest attachment.
    fn attach(
        &mut self,
        setting: &Setting<'_>,
        tenant: &mut Tenant,
        disturbance: Disturbance,
    ) -> Result<Attached> {
        let attachment = tenant.attachments.last().context("a pod without attachments")?;
        let (key, network, suite) = (attachment.key.clone(), attachment.network, attachment.suites.0);
        let call = attachment.call(setting.directory(suite)).add();
        let what = format!("ADD {} on {} by {}", key.1, network.name, suite.name());
        let (ledger, id) = (setting.ledger, key.0.as_str());
        ledger.enter(&key, Phase::Adding(None));
        let end = self.run(setting, tenant, &key, &what, &call, disturbance)?;
        let answer = match end {
            End::Answered(answer) => answer,
            End::Killed | End::Failed => {
                ledger.enter(&key, Phase::Leaving);
                return Ok(Attached::Perhaps);
            }
        };
        if answer.status() == Some(0) {
            match answer.result() {
                Ok(result) => {
                    self.keep(setting, tenant, &key, network, result);
                    return Ok(Attached::Yes);
                }
                Err(error) => {
                    ledger.broken(setting.fault_of(&[suite]), Some(id), &format!("{what}: {error:#}"));
                    ledger.enter(&key, Phase::Leaving);
                    return Ok(Attached::Perhaps);
                }
            }
        }
        let fault = setting.fault_of(&[suite]);
        match answer.refusal() {
            // Without its namespace it cannot succeed.
            Ok(_) if disturbance == Disturbance::Vanish => {}
            Ok(refusal) => ledger.broken(fault, Some(id), &format!("{what} is refused: {}", refusal.text())),
            Err(error) => ledger.broken(fault, Some(id), &format!("{what}: {error:#}")),
        }
        ledger.enter(&key, Phase::Leaving);
        // The reference leaves something after most errors.
        Ok(if suite == Suite::Ours { Attached::No } else { Attached::Perhaps })
    }

    /// Remembers the result of an ADD.
    fn keep(
        &mut self,
        setting: &Setting<'_>,
        tenant: &mut Tenant,
        key: &Key,
        network: &Network,
        result: serde_json::Value,
    ) {
        let (ledger, id) = (setting.ledger, key.0.as_str());
        let given = addresses(&result);
        ledger.enter(key, Phase::Attached);
        if given.len() != network.families() || !given.iter().all(|address| network.gives(*address)) {
            ledger.broken(Fault::Ours, Some(id), &format!("ADD of {} gave {given:?}", key.1));
        }
        for address in given {
            ledger.trace(&address.to_string(), id);
            if let Some(other) = ledger.hold(address, key) {
                let what = format!("{address} is given twice: {other:?} has it, and {key:?} got it");
                ledger.broken(Fault::Ours, Some(id), &what);
                ledger.broken(Fault::Ours, Some(&other.0), &what);
            }
        }
        if tenant.pod.is_none() {
            ledger.release(key);
        }
        if let Some(attachment) = tenant.attachments.last_mut() {
            attachment.result = Some(result);
            if let Some(link) = attachment.host_link() {
                ledger.trace(link, id);
            }
        }
    }

    /// CHECK of a pod's attachments.
    fn check(&mut self, setting: &Setting<'_>, index: usize) -> Result<()> {
        let Some(tenant) = self.tenants.get_mut(index) else { return Ok(()) };
        check(setting, tenant)
    }

    /// DEL of all attachments of a pod, newest first, and the end of its namespace.
    fn delete(&mut self, setting: &Setting<'_>, mut tenant: Tenant) -> Result<()> {
        if tenant.pod.is_some() && self.random.percent(setting.habits.vanishes * 2) {
            self.vanish(setting, &mut tenant)?;
        }
        while let Some(attachment) = tenant.attachments.pop() {
            self.detach(setting, &mut tenant, &attachment)?;
        }
        tenant.vanish()?;
        Ok(())
    }

    fn detach(&mut self, setting: &Setting<'_>, tenant: &mut Tenant, attachment: &Attachment) -> Result<()> {
        let (key, suite, ledger) = (&attachment.key, attachment.suites.1, setting.ledger);
        let fault = setting.fault_of(&[suite]);
        let what = format!("DEL {} on {} by {}", key.1, attachment.network.name, suite.name());
        ledger.enter(key, Phase::Leaving);
        for attempt in 0..RETRIES {
            let mut call = attachment.call(setting.directory(suite)).del();
            let forgets = suite == Suite::Ours && self.random.percent(15);
            if let (Some(result), false) = (&attachment.result, forgets) {
                call = call.prev(result);
            }
            // Some runtimes pass the path of what is not there any more, others none.
            if tenant.pod.is_none() && self.random.percent(50) {
                call = call.without("CNI_NETNS");
            }
            let disturbance = match self.disturbance(setting, suite, tenant) {
                Disturbance::Kill if attempt + 3 >= RETRIES => Disturbance::None,
                disturbance => disturbance,
            };
            let End::Answered(answer) = self.run(setting, tenant, key, &what, &call, disturbance)? else {
                continue;
            };
            match answer.silence() {
                Ok(()) if self.random.percent(10) => {
                    let End::Answered(again) =
                        self.run(setting, tenant, key, &what, &call, Disturbance::None)?
                    else {
                        continue;
                    };
                    if let Err(error) = again.silence() {
                        ledger.broken(fault, Some(&key.0), &format!("{what}, again: {error:#}"));
                    }
                }
                Ok(()) => {}
                Err(error) => {
                    ledger.broken(fault, Some(&key.0), &format!("{what}: {error:#}"));
                    continue;
                }
            }
            ledger.gone(key);
            return Ok(());
        }
        ledger.broken(fault, Some(&key.0), &format!("{what} does not succeed at all"));
        ledger.gone(key);
        Ok(())
    }

    fn vanish(&mut self, setting: &Setting<'_>, tenant: &mut Tenant) -> Result<()> {
        let path = tenant.pod.as_ref().map(|pod| pod.path().to_owned());
        if tenant.vanish()? {
            setting.ledger.note(&tenant.id, "its namespace is deleted");
            setting.ledger.vanish(&tenant.id);
            for attachment in &tenant.attachments {
                setting.ledger.release(&attachment.key);
            }
            // Who only unmounts it leaves an empty file.
            if let Some(path) = path.filter(|_| self.random.percent(30)) {
                std::fs::write(path, "")?;
            }
        }
        Ok(())
    }

    /// Runs a plugin and disturbs it.
    fn run(
        &mut self,
        setting: &Setting<'_>,
        tenant: &mut Tenant,
        key: &Key,
        what: &str,
        call: &Call,
        disturbance: Disturbance,
    ) -> Result<End> {
        let (ledger, id) = (setting.ledger, key.0.as_str());
        let is_add = what.starts_with("ADD");
        let usual = self.usual.get(usize::from(!is_add)).copied().unwrap_or_default();
        let moment = self.random.moment(usual);
        ledger.note(id, &format!("{what} begins"));
        let started = call.start(setting.host)?;
        let pid = started.pid();
        if is_add {
            ledger.enter(key, Phase::Adding(Some(pid)));
        }
        if disturbance != Disturbance::None {
            sleep(moment);
        }
        match disturbance {
            Disturbance::Kill => {
                // It stays its own until it is waited for, so nobody else can be hit.
                kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
            }
            Disturbance::Vanish => self.vanish(setting, tenant)?,
            Disturbance::None => {}
        }
        let outcome = started.answer(setting.host);
        ledger.count(|counts| counts.calls += 1);
        let answer = match outcome {
            Ok(answer) => answer,
            Err(error) => {
                ledger.note(id, &format!("{what}: {error:#}"));
                ledger.broken(Fault::Ours, Some(id), &format!("{what}: {error:#}"));
                return Ok(End::Failed);
            }
        };
        ledger.note(id, &format!("{what}: {} after {:.1?}", told(&answer), answer.took()));
        match answer.status() {
            None if disturbance == Disturbance::Kill => {
                ledger.count(|counts| counts.kills += 1);
                Ok(End::Killed)
            }
            None => {
                ledger.broken(Fault::Ours, Some(id), &format!("{what} crashed: {}", answer.stderr()));
                Ok(End::Failed)
            }
            Some(_) => {
                if let Some(usual) = self.usual.get_mut(usize::from(!is_add)) {
                    *usual = (*usual * 7 + answer.took()) / 8;
                }
                Ok(End::Answered(answer))
            }
        }
    }
}

/// What came of an ADD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attached {
    Yes,
    No,
    Perhaps,
}

/// CHECK of all attachments of a pod. Those whose namespace is gone cannot be checked.
pub(crate) fn check(setting: &Setting<'_>, tenant: &Tenant) -> Result<()> {
    if tenant.pod.is_none() {
        return Ok(());
    }
    for attachment in &tenant.attachments {
        let (key, suite) = (&attachment.key, attachment.suites.0);
        let Some(result) = &attachment.result else { continue };
        let what = format!("CHECK {} on {} by {}", key.1, attachment.network.name, suite.name());
        let answer = attachment.call(setting.directory(suite)).check().prev(result).run(setting.host)?;
        setting.ledger.count(|counts| counts.calls += 1);
        setting.ledger.note(&key.0, &format!("{what}: {} after {:.1?}", told(&answer), answer.took()));
        if let Err(error) = answer.silence() {
            let fault = setting.fault_of(&[suite]);
            setting.ledger.broken(fault, Some(&key.0), &format!("{what}: {error:#}"));
        }
    }
    Ok(())
}

/// An answer in one line.
pub(crate) fn told(answer: &Answer) -> String {
    match (answer.status(), answer.json()) {
        (None, _) => "killed".to_owned(),
        (Some(0), Some(result)) => {
            let given: Vec<String> = addresses(result).iter().map(ToString::to_string).collect();
            format!("success, {}", given.join(" "))
        }
        (Some(0), None) => "success".to_owned(),
        (Some(status), Some(error)) => format!("status {status}, {error}{}", answer.stderr()),
        (Some(status), None) => format!("status {status}, {}{}", answer.stdout(), answer.stderr()),
    }
}

/// The networks for `eth0`. What ours keeps in nftables, the reference does not know, and vice versa.
fn networks(setting: &Setting<'_>) -> &'static [Network] {
    let known_to_both = NETWORKS.split_at(2).0;
    if setting.reference.is_some() { known_to_both } else { network::served_by(setting.host.plugins()) }
}
