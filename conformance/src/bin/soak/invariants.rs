//! What must hold whenever no call runs: nothing is left of who is gone, and nothing is missing of who is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use conformance::sandbox::{SCRATCH, STORE, Sandbox};

use crate::attachment::{Attachment, Key, Suite, Tenant};
use crate::ledger::{Fault, Ledger};
use crate::network;
use crate::random::Random;
use crate::reach::Reachable;
use crate::worker::{Setting, Worker, check};

/// How long the kernel, and children that plugins leave to wait for it, may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at everything. All workers have stopped.
pub(crate) fn examine(setting: &Setting<'_>, workers: &[Worker], random: &mut Random) -> Result<Summary> {
    wait_for_quiet(setting)?;
    if setting.habits.collections > 0 {
        crate::collection::collect_all(setting)?;
        wait_for_quiet(setting)?;
    }
    let tenants: Vec<&Tenant> = workers.iter().flat_map(|worker| &worker.tenants).collect();
    check_all(setting, &tenants)?;
    let live: BTreeMap<Key, &Attachment> =
        tenants.iter().flat_map(|it| &it.attachments).map(|it| (it.key.clone(), it)).collect();
    for wrong in wait_until_right(|| survey(setting, &live))? {
        setting.ledger.broken(wrong.fault, wrong.id.as_deref(), &wrong.what);
    }
    let slowest = reach_all(setting, &tenants, random)?;
    Ok(Summary { live: live.len(), slowest })
}

/// What a look at everything saw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summary {
    /// Attachments that were there.
    pub(crate) live: usize,
    /// The longest time that a connection to a pod took.
    pub(crate) slowest: Duration,
}

/// Something that is left or missing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wrong {
    id: Option<String>,
    what: String,
    fault: Fault,
}

/// Repeats a look until nothing is wrong or patience is over.
fn wait_until_right(look: impl Fn() -> Result<BTreeSet<Wrong>>) -> Result<BTreeSet<Wrong>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = look()?;
        if found.is_empty() || Instant::now() > deadline {
            return Ok(found);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until all processes have ended that plugins have left: they may do so for the kernel's sake, not for long.
fn wait_for_quiet(setting: &Setting<'_>) -> Result<()> {
    let own = fs::read("/proc/self/cmdline")?;
    let own = String::from_utf8_lossy(&own).replace('\0', " ");
    let look = || -> Result<BTreeSet<Wrong>> {
        let others = setting.host.processes()?.into_iter().filter(|line| *line != own);
        let wrong = |line| Wrong { id: None, what: format!("a process is left: {line}"), fault: Fault::Ours };
        Ok(others.map(wrong).collect())
    };
    for wrong in wait_until_right(look)? {
        setting.ledger.broken(wrong.fault, None, &wrong.what);
    }
    Ok(())
}

fn check_all(setting: &Setting<'_>, tenants: &[&Tenant]) -> Result<()> {
    let share = tenants.len().div_ceil(8).max(1);
    thread::scope(|scope| {
        let checkers: Vec<_> = tenants
            .chunks(share)
            .map(|some| scope.spawn(move || some.iter().try_for_each(|tenant| check(setting, tenant))))
            .collect();
        for checker in checkers {
            match checker.join() {
                Ok(outcome) => outcome?,
                Err(_) => bail!("a thread panicked"),
            }
        }
        Ok(())
    })
}

/// A survey of one moment, as far as it has come.
struct Survey<'a> {
    setting: &'a Setting<'a>,
    live: &'a BTreeMap<Key, &'a Attachment>,
    found: BTreeSet<Wrong>,
}

fn survey(setting: &Setting<'_>, live: &BTreeMap<Key, &Attachment>) -> Result<BTreeSet<Wrong>> {
    let mut survey = Survey { setting, live, found: BTreeSet::new() };
    survey.store()?;
    survey.files()?;
    survey.links()?;
    survey.rules()?;
    let mut found = survey.found;
    found.retain(|wrong| !setting.ledger.is_known(wrong.id.as_deref(), &wrong.what));
    Ok(found)
}

impl Survey<'_> {
    /// Something of a pod that is gone is left.
    fn left(&mut self, id: Option<&str>, what: String) {
        let ledger = self.setting.ledger;
        let fault = match id.and_then(|id| Some((ledger.suites(id)?, ledger.has_vanished(id)))) {
            Some(((Suite::Reference, Suite::Reference), _)) => Fault::Reference,
            // It takes a namespace that is gone for the end of all that belongs to it.
            Some(((_, Suite::Reference), true)) => Fault::Reference,
            _ => Fault::Ours,
        };
        self.found.insert(Wrong { id: id.map(str::to_owned), what: format!("left: {what}"), fault });
    }

    fn missing(&mut self, attachment: &Attachment, what: &str) {
        let fault = self.setting.fault_of_attachment(attachment);
        let (id, ifname) = &attachment.key;
        self.found.insert(Wrong {
            id: Some(id.clone()),
            what: format!("missing of {ifname}: {what}"),
            fault,
        });
    }

    fn is_live(&self, id: &str) -> bool {
        self.live.keys().any(|(live, _)| live == id)
    }

    /// Reservations: exactly those of the attachments that are there.
    fn store(&mut self) -> Result<()> {
        for network in network::all() {
            let mut held: BTreeMap<IpAddr, Key> = BTreeMap::new();
            for attachment in self.live.values().filter(|it| it.network.name == network.name) {
                held.extend(attachment.addresses().into_iter().map(|it| (it, attachment.key.clone())));
            }
            for name in self.setting.host.store(network.name)? {
                let path = Path::new(STORE).join(network.name).join(&name);
                let text = fs::read_to_string(&path).unwrap_or_default();
                let id = text.lines().next().map(str::trim_end).filter(|id| !id.is_empty());
                let Ok(address) = name.parse::<IpAddr>() else {
                    if name != "lock" && !name.starts_with("last_reserved_ip.") {
                        self.left(id, format!("file {} with {text:?}", path.display()));
                    }
                    continue;
                };
                match held.remove(&address) {
                    Some((id, ifname)) if text == format!("{id}\r\n{ifname}") => {}
                    Some((id, ifname)) => {
                        let what = format!("{} has {text:?}, but {address} is {ifname}'s", path.display());
                        self.left(Some(&id), what);
                    }
                    None => self.left(id, format!("reservation {} of {text:?}", path.display())),
                }
            }
            for (address, key) in held {
                if let Some(attachment) = self.live.get(&key).copied() {
                    self.missing(attachment, &format!("reservation of {address}"));
                }
            }
        }
        Ok(())
    }

    /// Files that name a container, drafts, and locks that somebody holds.
    fn files(&mut self) -> Result<()> {
        let mut paths = files(Path::new("/run"));
        paths.extend(files(Path::new("/var/lib/cni")));
        for path in paths {
            let Ok(bytes) = fs::read(&path) else { continue };
            let shown = path.to_string_lossy().into_owned();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let is_reservation = path.starts_with(STORE);
            for id in ids_in(&format!("{shown} {text}")) {
                let foreign = self.setting.ledger.suites(&id) == Some((Suite::Ours, Suite::Reference));
                if !is_reservation && !foreign && !self.is_live(&id) {
                    self.left(Some(&id), format!("file {shown}"));
                }
            }
            if shown.ends_with(":new") || shown.ends_with(".tmp") {
                self.left(ids_in(&shown).first().map(String::as_str), format!("draft {shown}"));
            }
            if File::open(&path).is_ok_and(|file| file.try_lock().is_err()) {
                self.left(None, format!("lock {shown} is held"));
            }
        }
        Ok(())
    }

    /// Links: those of the attachments that are there, as ports of their bridges.
    fn links(&mut self) -> Result<()> {
        let links = self.setting.host.ip("link show")?;
        let mut wanted: BTreeMap<&str, &Attachment> =
            self.live.values().filter_map(|it| Some((it.host_link()?, *it))).collect();
        let mut left = Vec::new();
        let mut unplugged = Vec::new();
        for link in &links {
            let name = link["ifname"].as_str().unwrap_or_default();
            if name == "lo" || network::all().any(|network| network.bridge == name) {
                continue;
            }
            match wanted.remove(name) {
                Some(attachment) if link["master"] == attachment.network.bridge => {}
                Some(attachment) => unplugged.push((attachment, link["master"].to_string())),
                // What delays packets for a pod names the pod.
                None if link["linkinfo"]["info_kind"] == "ifb"
                    && ids_in(&link.to_string()).iter().any(|id| self.is_live(id)) => {}
                None => left.push((name.to_owned(), ids_in(&link.to_string()), format!("link {link}"))),
            }
        }
        let missing: Vec<(&Attachment, String)> =
            wanted.into_iter().map(|(name, attachment)| (attachment, format!("link {name}"))).collect();
        for (name, ids, what) in left {
            let id = ids.into_iter().next().or_else(|| self.setting.ledger.traced(&name));
            self.left(id.as_deref(), what);
        }
        for (attachment, master) in unplugged {
            self.missing(attachment, &format!("its bridge as master, which is {master}"));
        }
        for (attachment, what) in missing {
            self.missing(attachment, &what);
        }
        Ok(())
    }

    /// Rules, chains and elements: whatever names a container, an address or a link of pods names one that is there.
    fn rules(&mut self) -> Result<()> {
        let text = self.setting.host.run(&["nft", "-s", "list", "ruleset"])?;
        let addresses: BTreeMap<IpAddr, &Attachment> = self
            .live
            .values()
            .flat_map(|it| it.addresses().into_iter().map(|address| (address, *it)))
            .collect();
        let links: BTreeSet<&str> = self.live.values().filter_map(|it| it.host_link()).collect();
        let owners = chain_owners(self.setting.host);
        let mut seen: BTreeMap<IpAddr, usize> = BTreeMap::new();
        let mut guarded: BTreeSet<&str> = BTreeSet::new();
        let mut chains: BTreeSet<&str> = BTreeSet::new();
        let mut targets: BTreeSet<&str> = BTreeSet::new();
        for line in text.lines() {
            let line = line.trim();
            for id in ids_in(line).iter().filter(|id| !self.is_live(id)).cloned().collect::<Vec<_>>() {
                self.left(Some(&id), format!("in nf_tables: {}", around(line, &id)));
            }
            let leads_to = line.split_whitespace().skip_while(|word| *word != "jump").nth(1);
            targets.extend(leads_to);
            if let Some(id) = leads_to.and_then(|chain| owners.get(chain)).filter(|id| !self.is_live(id)) {
                self.left(Some(id), format!("in nf_tables: {line}"));
                continue;
            }
            for word in line.split(|c: char| !c.is_ascii_hexdigit() && c != '.' && c != ':') {
                let Ok(address) = word.parse::<IpAddr>() else { continue };
                if !network::all().any(|network| network.gives(address)) {
                    continue;
                }
                *seen.entry(address).or_default() += 1;
                if !addresses.contains_key(&address) {
                    let id = self.setting.ledger.traced(&address.to_string());
                    self.left(id.as_deref(), format!("in nf_tables: {}", around(line, word)));
                }
            }
            for word in line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-') {
                if is_host_link(word) {
                    guarded.insert(word);
                    if !links.contains(word) {
                        let id = self.setting.ledger.traced(word);
                        self.left(id.as_deref(), format!("in nf_tables: {}", around(line, word)));
                    }
                }
            }
            let chain = line.strip_prefix("chain ").and_then(|rest| rest.split_whitespace().next());
            chains.extend(chain.filter(|name| name.starts_with("CNI-")));
        }
        for chain in chains.difference(&targets) {
            self.left(None, format!("chain {chain}, which nothing leads to"));
        }
        for (address, attachment) in addresses {
            match (seen.get(&address), attachment.network.masquerades()) {
                (None, true) => self.missing(attachment, &format!("masquerading of {address}")),
                (Some(count), true) if *count > 1 && !attachment.network.has_many_rules() => {
                    self.left(Some(&attachment.key.0), format!("{address} is masqueraded {count} times"));
                }
                _ => {}
            }
        }
        for attachment in self.live.values().copied().filter(|it| it.network.guards) {
            if !attachment.host_link().is_some_and(|link| guarded.contains(link)) {
                self.missing(attachment, "guard of its MAC address");
            }
        }
        Ok(())
    }
}

/// Every pod is reached at every address, from the host and from another pod of its network.
fn reach_all(setting: &Setting<'_>, tenants: &[&Tenant], random: &mut Random) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for network in network::all() {
        let attachments = tenants.iter().filter_map(|tenant| {
            let attachment = tenant.attachments.iter().find(|it| it.network.name == network.name)?;
            Some((tenant.pod.as_ref()?, attachment))
        });
        let mut pods = Vec::new();
        for (pod, attachment) in attachments {
            let (id, fault) = (attachment.key.0.as_str(), setting.fault_of(&[attachment.suites.0]));
            match Reachable::listen(pod, &attachment.addresses()) {
                Ok(reachable) => pods.push((id, fault, reachable)),
                Err(error) => setting.ledger.broken(fault, Some(id), &format!("{error:#}")),
            }
        }
        for (id, fault, pod) in &pods {
            let mut outcomes = vec![pod.reach_from_host()];
            match random.pick(&pods) {
                Some((other, _, from)) if other != id => outcomes.push(pod.reach_from_pod(from)),
                _ => {}
            }
            for outcome in outcomes {
                match outcome {
                    Ok(took) => slowest = slowest.max(took),
                    Err(error) => {
                        let what = format!("unreachable on {}: {error:#}", network.name);
                        setting.ledger.note(id, &neighbours(setting.host, &what).unwrap_or_default());
                        setting.ledger.broken(*fault, Some(id), &what);
                    }
                }
            }
        }
        ping_one(setting, tenants, network.name, random);
    }
    Ok(slowest)
}

/// A pod answers pings as well as connections.
fn ping_one(setting: &Setting<'_>, tenants: &[&Tenant], network: &str, random: &mut Random) {
    let candidates: Vec<&Attachment> =
        tenants.iter().flat_map(|it| &it.attachments).filter(|it| it.network.name == network).collect();
    let Some(attachment) = random.pick(&candidates) else { return };
    for address in attachment.addresses() {
        if let Err(error) = setting.host.ping(&address.to_string()) {
            let fault = setting.fault_of(&[attachment.suites.0]);
            setting.ledger.broken(fault, Some(&attachment.key.0), &format!("{error:#}"));
        }
    }
}

/// The containers whose chains of iptables these are, by the comments of the rules that lead there. nft does not show
/// those.
fn chain_owners(host: &Sandbox) -> BTreeMap<String, String> {
    let mut owners = BTreeMap::new();
    for program in ["iptables-save", "ip6tables-save"] {
        let Ok(finished) = host.try_run(&[program, "-t", "nat"]) else { continue };
        for line in finished.stdout.lines() {
            let chain = line.split_whitespace().skip_while(|word| *word != "-j").nth(1);
            if let (Some(chain), Some(id)) = (chain, ids_in(line).into_iter().next()) {
                owners.insert(chain.to_owned(), id);
            }
        }
    }
    owners
}

/// What the host knows of the neighbours whose addresses a text has.
fn neighbours(host: &Sandbox, text: &str) -> Result<String> {
    let mut words: BTreeSet<&str> =
        text.split(|c: char| !c.is_ascii_hexdigit() && c != '.' && c != ':').collect();
    words.extend(words.clone().iter().filter_map(|word| Some(word.split_once(':')?.0)));
    let all = host.run(&["ip", "neigh", "show"]).context("neighbours")?;
    let is_meant = |line: &&str| line.split_whitespace().next().is_some_and(|first| words.contains(first));
    Ok(all.lines().filter(is_meant).collect::<Vec<_>>().join("; "))
}

/// The containers that a text names: those that workers have made.
fn ids_in(text: &str) -> Vec<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric());
    words.filter(|word| is_id(word)).map(str::to_owned).collect()
}

fn is_id(word: &str) -> bool {
    let Some((worker, number)) = word.strip_prefix("soakw").and_then(|rest| rest.split_once('n')) else {
        return false;
    };
    let are_digits = |text: &str, len: usize| text.len() == len && text.bytes().all(|it| it.is_ascii_digit());
    are_digits(worker, 3) && are_digits(number, 5)
}

fn is_host_link(word: &str) -> bool {
    let digits = word.strip_prefix("veth").unwrap_or_default();
    digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The part of a long line that has a word in it.
fn around<'a>(line: &'a str, word: &str) -> &'a str {
    let part = line.split(',').find(|part| part.contains(word)).unwrap_or(line);
    part.trim()
}

/// All files below a directory but the soak's own.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if [SCRATCH, "/run/netns", "/run/layers"].iter().any(|own| path == Path::new(own)) {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&path)),
            Ok(kind) if kind.is_file() => found.push(path),
            _ => {}
        }
    }
    found
}

/// Says what a pause has shown.
pub(crate) fn report(ledger: &Ledger, scenario: &str, summary: Summary) {
    let counts = ledger.counts();
    crate::say(&format!(
        "{scenario}: {:.0} s, {} calls, {} killed, {} namespaces deleted, {} attachments there, reached in {:.1?}, \
         {} broken\n",
        ledger.elapsed().as_secs_f32(),
        counts.calls,
        counts.kills,
        counts.vanished,
        summary.live,
        summary.slowest,
        counts.broken,
    ));
}
