//! What must hold after a fault.

use anyhow::{Context, Result, bail};
use conformance::call::{Answer, Call};
use conformance::expect::soon;
use conformance::pod::Pod;
use conformance::sandbox::{SCRATCH, Sandbox};
use conformance::snapshot::Snapshot;
use nix::unistd::symlinkat;
use serde_json::{Value, json};

use crate::fault::{Fault, Injection};
use crate::point::Point;
use crate::scenario::{Plugin, Scenario, Surroundings};
use crate::tracer;

/// The container that is attached under a fault, and one that was there before it.
const SUBJECT: &str = "subject";
const NEIGHBOUR: &str = "neighbour";

/// Which call is disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// ADD
    Add,
    /// DEL
    Del,
    /// GC, of which the pod is in no list.
    Gc,
    /// `bridgehead restore`, after a flush of all rules.
    Restore,
}

impl Verb {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Add, Self::Del, Self::Gc, Self::Restore];

    /// Whether every plugin has it.
    pub(crate) fn is_of_cni_0_4(self) -> bool {
        matches!(self, Self::Add | Self::Del)
    }

    /// `CNI_COMMAND`, or the word for the tool in capitals.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Gc => "GC",
            Self::Restore => "RESTORE",
        }
    }
}

/// How a plugin took a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It succeeded, and all is as after any success.
    Tolerated,
    /// It failed, said so, and left nothing; trying again works.
    Refused,
    /// It was killed, and DEL removes what it left.
    Recovered,
    /// It did not come to that point again.
    Missed,
}

/// What an undisturbed run is like.
pub(crate) struct Baseline {
    /// The host before anything was attached.
    empty: Snapshot,
    /// The host after ADD and DEL: what those leave that is shared, such as the bridge.
    settled: Snapshot,
    /// What ADD answers.
    result: Value,
    /// The points of the verb that is to be disturbed.
    pub(crate) points: Vec<Point>,
}

/// A host with a pod that is to be attached.
struct Stage<'a> {
    host: &'a Sandbox,
    scenario: &'a Scenario,
    pod: Pod,
    call: Call,
    surroundings: Surroundings,
    _neighbour: Option<Pod>,
}

impl<'a> Stage<'a> {
    fn set(host: &'a Sandbox, scenario: &'a Scenario) -> Result<Self> {
        let surroundings = scenario.surround(host)?;
        let neighbour = scenario.has_neighbour.then(|| host.pod(NEIGHBOUR)).transpose()?;
        if let Some(neighbour) = &neighbour {
            scenario.call(host, NEIGHBOUR, neighbour)?.add().run(host)?.result().context("the neighbour")?;
        }
        if scenario.is_flushed {
            flush(host)?;
        }
        let pod = host.pod(SUBJECT)?;
        let call = scenario.call(host, SUBJECT, &pod)?;
        Ok(Self { host, scenario, pod, call, surroundings, _neighbour: neighbour })
    }

    /// The call of a verb, for the pod with this result of ADD.
    fn of(&self, verb: Verb, result: &Value) -> Call {
        match verb {
            Verb::Add => self.scenario.add(&self.call),
            Verb::Del => self.scenario.del(&self.call, Some(result)),
            Verb::Gc => {
                let kept = [NEIGHBOUR].into_iter().filter(|_| self.scenario.has_neighbour);
                let list: Vec<Value> = kept.map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
                self.call.gc().set("cni.dev/valid-attachments", json!(list))
            }
            Verb::Restore => Call::new("bridgehead").arguments(&["restore"]),
        }
    }

    /// `bridgehead restore` succeeds.
    fn restore(&self) -> Result<()> {
        let program = self.host.plugins().join("bridgehead");
        self.host.run(&[program.to_string_lossy().as_ref(), "restore"]).context("the next restore").map(drop)
    }

    fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::take(self.host, &[&self.pod])
    }

    /// Runs a call under a tracer; gives the points that it logged.
    fn traced(
        &self,
        verb: Verb,
        call: &Call,
        fault: Option<(&Point, Injection)>,
    ) -> Result<(Answer, Vec<Point>)> {
        let directory = format!("{SCRATCH}/traced");
        let log = format!("{SCRATCH}/points");
        if std::fs::create_dir(&directory).is_ok() {
            let own = std::env::current_exe()?;
            for name in std::collections::BTreeSet::from([self.scenario.file_name(), "bridgehead"]) {
                symlinkat(&own, nix::fcntl::AT_FDCWD, format!("{directory}/{name}").as_str())?;
            }
        }
        let name = if verb == Verb::Restore { "bridgehead" } else { self.scenario.file_name() };
        let mut call = call
            .from(&directory)
            .env(tracer::PROGRAM, &self.host.plugins().join(name).to_string_lossy())
            .env(tracer::LOG, &log);
        if verb == Verb::Restore {
            call = call.env("CNI_PATH", &self.scenario.path(self.host)?);
        }
        if let Some((point, injection)) = fault {
            call =
                call.env(tracer::POINT, &point.encode()).env(tracer::INJECTION, &tracer::encode(injection));
        }
        let answer = call.run(self.host)?;
        let points =
            std::fs::read_to_string(&log).with_context(|| format!("no {log}: {}", answer.stderr()))?;
        Ok((answer, points.lines().map(Point::decode).collect::<Result<_>>()?))
    }

    /// ADD succeeds, its pod can be reached from the host, and CHECK finds nothing.
    fn works(&self, result: &Value) -> Result<()> {
        self.can_be_reached(result)?;
        let check = self.scenario.check(&self.call, result);
        check.map_or(Ok(()), |check| check.run(self.host)?.silence().context("CHECK"))
    }

    /// The pod answers at all of its addresses. From then on, the host remembers it: neighbours, and where it
    /// translates addresses, connections.
    fn can_be_reached(&self, result: &Value) -> Result<()> {
        if self.scenario.has_link() {
            self.scenario.addresses(result).iter().try_for_each(|address| self.host.ping(address))?;
        }
        Ok(())
    }

    fn can_be_added(&self) -> Result<()> {
        let result = self.of(Verb::Add, &Value::Null).run(self.host)?.result().context("the next ADD")?;
        self.works(&result).context("after the next ADD")
    }

    /// Of the attachment nothing is left.
    fn is_gone(&self, before: &Snapshot, baseline: &Baseline) -> Result<()> {
        soon(|| self.snapshot()?.nothing_beyond(before, &baseline.settled))
    }

    /// The same, and the host does not remember it: the child that sees to it was not killed.
    fn is_gone_for_good(&self, before: &Snapshot, baseline: &Baseline, injection: Injection) -> Result<()> {
        self.is_gone(before, baseline)?;
        if injection == Injection::Kill { Ok(()) } else { soon(|| self.is_forgotten(&baseline.result)) }
    }

    /// The host does not remember connections of the pod. Where there is no conntrack, it has none that could be seen.
    /// What is chained behind a bridge leaves them to that, which is still there.
    fn is_forgotten(&self, result: &Value) -> Result<()> {
        if matches!(self.scenario.plugin, Plugin::Chained(_)) {
            return Ok(());
        }
        for address in self.scenario.addresses(result) {
            let family = if address.contains(':') { "ipv6" } else { "ipv4" };
            let Ok(listed) = self.host.try_run(&["conntrack", "-L", "-f", family]) else { return Ok(()) };
            let words = [format!("src={address}"), format!("dst={address}")];
            let left = listed
                .stdout
                .lines()
                .find(|line| line.split_whitespace().any(|word| words.iter().any(|of_pod| word == of_pod)));
            if let Some(line) = left {
                bail!("a connection was left: {line}");
            }
        }
        Ok(())
    }
}

/// Takes away all rules.
fn flush(host: &Sandbox) -> Result<()> {
    host.run(&["nft", "flush", "ruleset"]).map(drop)
}

/// Runs a verb undisturbed.
pub(crate) fn learn(host: &Sandbox, scenario: &Scenario, verb: Verb) -> Result<Baseline> {
    let stage = Stage::set(host, scenario)?;
    let empty = stage.snapshot()?;
    let veths = || Ok::<_, anyhow::Error>(host.ip("link show type veth")?.len());
    let veths_before = veths()?;
    let (answer, mut points) = stage.traced(Verb::Add, &stage.of(Verb::Add, &Value::Null), None)?;
    let result = answer.result().context("undisturbed ADD")?;
    stage.works(&result).context("undisturbed ADD")?;
    let of_verb = stage.of(verb, &result);
    match verb {
        Verb::Add => {}
        Verb::Del | Verb::Gc => {
            let (answer, of_this) = stage.traced(verb, &of_verb, None)?;
            answer.silence().with_context(|| format!("undisturbed {}", verb.name()))?;
            points = of_this;
        }
        Verb::Restore => {
            flush(host)?;
            let (answer, of_this) = stage.traced(verb, &of_verb, None)?;
            if answer.status() != Some(0) {
                bail!("undisturbed restore: {}", answer.stderr());
            }
            stage.works(&result).context("undisturbed restore")?;
            points = of_this;
        }
    }
    if verb != Verb::Del {
        stage.of(Verb::Del, &result).run(host)?.silence().context("undisturbed DEL")?;
    }
    // The kernel takes its time with removed links; what is there once they are gone, stays.
    let settled = soon(|| {
        let snapshot = stage.snapshot()?;
        if veths()? > veths_before {
            bail!("a veth is left");
        }
        Ok(snapshot)
    })?;
    Ok(Baseline { empty, settled, result, points })
}

/// Runs a verb with a fault at a point. An error says what is wrong then.
pub(crate) fn judge(
    host: &Sandbox,
    scenario: &Scenario,
    verb: Verb,
    (fault, point, injection): (Fault, &Point, Injection),
    baseline: &Baseline,
) -> Result<Kept> {
    let stage = Stage::set(host, scenario)?;
    let is_empty = !scenario.differs() && matches!(stage.surroundings, Surroundings::None);
    let before = if is_empty { baseline.empty.clone() } else { stage.snapshot()? };
    let with_result = stage.of(Verb::Del, &baseline.result);
    let cleaning = match fault {
        Fault::KillThenPrevResult => with_result.clone(),
        _ => scenario.del(&stage.call, None),
    };
    let mut result = Value::Null;
    if verb != Verb::Add {
        result = stage.of(Verb::Add, &Value::Null).run(host)?.result().context("ADD before it")?;
        stage.can_be_reached(&result).context("before it")?;
    }
    if verb == Verb::Restore {
        flush(host)?;
    }
    let call = stage.of(verb, &baseline.result);
    let (answer, hit) = stage.traced(verb, &call, Some((point, injection)))?;
    if answer.status() == Some(tracer::HANG) {
        bail!("hangs: {}", answer.stderr());
    }
    if hit.is_empty() {
        return Ok(Kept::Missed);
    }
    let said =
        || format!("it ended with {:?} and said {}{}", answer.status(), answer.stdout(), answer.stderr());
    match (answer.status(), verb) {
        (None, _) if injection != Injection::Kill => bail!("crashed: {}", answer.stderr()),
        (status, Verb::Restore) => {
            if status != Some(0) {
                stage.restore()?;
            }
            stage.works(&result).context("after restore")?;
            with_result.run(host)?.silence().context("DEL after restore")?;
            stage.is_gone(&before, baseline).context("after restore and DEL")?;
            Ok(match status {
                Some(0) => Kept::Tolerated,
                Some(_) if fault.is_to_be_tolerated() => bail!("not tolerated: {}", said()),
                Some(_) => Kept::Refused,
                None => Kept::Recovered,
            })
        }
        (None, _) => {
            cleaning.run(host)?.silence().context("DEL after the kill")?;
            stage.is_gone(&before, baseline).context("after the kill and DEL")?;
            stage.can_be_added()?;
            Ok(Kept::Recovered)
        }
        (Some(0), Verb::Add) => {
            let result = answer.result()?;
            stage.works(&result).context("although ADD succeeded")?;
            let del = stage.of(Verb::Del, &result);
            del.run(host)?.silence().context("DEL after ADD succeeded")?;
            stage.is_gone_for_good(&before, baseline, injection).context("after ADD succeeded and DEL")?;
            Ok(Kept::Tolerated)
        }
        (Some(0), Verb::Del | Verb::Gc) => {
            answer.silence()?;
            stage.is_gone_for_good(&before, baseline, injection).context("although it succeeded")?;
            Ok(Kept::Tolerated)
        }
        (Some(_), _) if fault.is_to_be_tolerated() => bail!("not tolerated: {}", said()),
        (Some(_), Verb::Add) => {
            let refusal = scenario.refusal(&answer)?;
            // The empty tables and chains that all pods share may stay. Nobody could tell whether another is about to
            // use them, and the commands of iptables leave them just so.
            // And the kernel gives lo its address when it is first set up, for ever.
            let shared = match stage.scenario.plugin {
                Plugin::Loopback => baseline.settled.clone(),
                _ => baseline.settled.rules(),
            };
            let restored = soon(|| stage.snapshot()?.nothing_beyond(&before, &shared));
            restored.with_context(|| format!("after ADD failed ({})", refusal))?;
            stage.can_be_added()?;
            Ok(Kept::Refused)
        }
        (Some(_), Verb::Del | Verb::Gc) => {
            let refusal = scenario.refusal(&answer)?;
            let again = call.run(host)?.silence();
            again.with_context(|| format!("the one after the failed one ({})", refusal))?;
            let gone = stage.is_gone(&before, baseline);
            gone.with_context(|| format!("after the second (the first: {})", refusal))?;
            Ok(Kept::Refused)
        }
    }
}
