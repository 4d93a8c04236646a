//! What must hold after a fault.

use anyhow::{Context, Result, bail};
use conformance::call::{Answer, Call};
use conformance::cases::networks::{Attachment, bridge};
use conformance::expect::soon;
use conformance::pod::Pod;
use conformance::sandbox::{SCRATCH, Sandbox};
use conformance::snapshot::Snapshot;
use nix::unistd::symlinkat;
use serde_json::Value;

use crate::fault::{Fault, Injection};
use crate::point::Point;
use crate::scenario::Scenario;
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
}

impl Verb {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Add, Self::Del];

    /// `CNI_COMMAND`
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
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
    pod: Pod,
    call: Call,
    _neighbour: Option<Attachment>,
}

impl<'a> Stage<'a> {
    fn set(host: &'a Sandbox, scenario: &Scenario) -> Result<Self> {
        let network = scenario.network();
        let neighbour = scenario.has_neighbour.then(|| Attachment::new(host, NEIGHBOUR, network.clone()));
        let neighbour = neighbour.transpose()?;
        let pod = host.pod(SUBJECT)?;
        let call = bridge(SUBJECT, &pod, network);
        Ok(Self { host, pod, call, _neighbour: neighbour })
    }

    fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::take(self.host, &[&self.pod])
    }

    /// Runs a call under a tracer; gives the points that it logged.
    fn traced(&self, call: &Call, fault: Option<(&Point, Injection)>) -> Result<(Answer, Vec<Point>)> {
        let directory = format!("{SCRATCH}/traced");
        let log = format!("{SCRATCH}/points");
        if std::fs::create_dir(&directory).is_ok() {
            let own = std::env::current_exe()?;
            symlinkat(&own, nix::fcntl::AT_FDCWD, format!("{directory}/bridge").as_str())?;
        }
        let plugins = self.host.plugins();
        let program = plugins.join("bridge");
        let mut call = call
            .from(&directory)
            .env("CNI_PATH", &plugins.to_string_lossy())
            .env(tracer::PROGRAM, &program.to_string_lossy())
            .env(tracer::LOG, &log);
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
        self.call.check().prev(result).run(self.host)?.silence().context("CHECK")
    }

    /// The pod answers at all of its addresses. From then on, the host remembers it: neighbours, and where it
    /// translates addresses, connections.
    fn can_be_reached(&self, result: &Value) -> Result<()> {
        for ip in result["ips"].as_array().into_iter().flatten() {
            let address = ip["address"].as_str().and_then(|text| text.split('/').next()).unwrap_or_default();
            self.host.ping(address)?;
        }
        Ok(())
    }

    fn can_be_added(&self) -> Result<()> {
        let result = self.call.add().run(self.host)?.result().context("the next ADD")?;
        self.works(&result).context("after the next ADD")
    }

    /// Of the attachment nothing is left.
    fn is_gone(&self, before: &Snapshot, baseline: &Baseline) -> Result<()> {
        soon(|| self.snapshot()?.nothing_beyond(before, &baseline.settled))
    }
}

/// Runs a verb undisturbed.
pub(crate) fn learn(host: &Sandbox, scenario: &Scenario, verb: Verb) -> Result<Baseline> {
    let stage = Stage::set(host, scenario)?;
    let empty = stage.snapshot()?;
    let (answer, mut points) = stage.traced(&stage.call.add(), None)?;
    let result = answer.result().context("undisturbed ADD")?;
    stage.works(&result).context("undisturbed ADD")?;
    let del = stage.call.del().prev(&result);
    if verb == Verb::Del {
        let (answer, points_of_del) = stage.traced(&del, None)?;
        answer.silence().context("undisturbed DEL")?;
        points = points_of_del;
    } else {
        del.run(host)?.silence().context("undisturbed DEL")?;
    }
    // The kernel takes its time with removed links; what is there once they are gone, stays.
    let settled = soon(|| {
        let snapshot = stage.snapshot()?;
        if host.ip("link show type veth")?.len() > usize::from(scenario.has_neighbour) {
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
    let before = if scenario.has_neighbour { stage.snapshot()? } else { baseline.empty.clone() };
    let with_result = stage.call.del().prev(&baseline.result);
    let cleaning = if fault == Fault::KillThenPrevResult { with_result.clone() } else { stage.call.del() };
    let call = match verb {
        Verb::Add => stage.call.add(),
        Verb::Del => {
            let result = stage.call.add().run(host)?.result().context("ADD before the DEL")?;
            stage.can_be_reached(&result).context("before the DEL")?;
            with_result.clone()
        }
    };
    let (answer, hit) = stage.traced(&call, Some((point, injection)))?;
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
        (None, _) => {
            cleaning.run(host)?.silence().context("DEL after the kill")?;
            stage.is_gone(&before, baseline).context("after the kill and DEL")?;
            stage.can_be_added()?;
            Ok(Kept::Recovered)
        }
        (Some(0), Verb::Add) => {
            let result = answer.result()?;
            stage.works(&result).context("although ADD succeeded")?;
            stage.call.del().prev(&result).run(host)?.silence().context("DEL after ADD succeeded")?;
            stage.is_gone(&before, baseline).context("after ADD succeeded and DEL")?;
            Ok(Kept::Tolerated)
        }
        (Some(0), Verb::Del) => {
            answer.silence()?;
            stage.is_gone(&before, baseline).context("although DEL succeeded")?;
            Ok(Kept::Tolerated)
        }
        (Some(_), _) if fault == Fault::Interruption => bail!("not tolerated: {}", said()),
        (Some(_), Verb::Add) => {
            let refusal = answer.refusal()?;
            // The empty tables and chains that all pods share may stay. Nobody could tell whether another is about to
            // use them, and the commands of iptables leave them just so.
            let shared = baseline.settled.rules();
            let restored = soon(|| stage.snapshot()?.nothing_beyond(&before, &shared));
            restored.with_context(|| format!("after ADD failed ({})", refusal.text()))?;
            stage.can_be_added()?;
            Ok(Kept::Refused)
        }
        (Some(_), Verb::Del) => {
            let refusal = answer.refusal()?;
            let again = with_result.run(host)?.silence();
            again.with_context(|| format!("the DEL after the failed one ({})", refusal.text()))?;
            let gone = stage.is_gone(&before, baseline);
            gone.with_context(|| format!("after the second DEL (the first: {})", refusal.text()))?;
            Ok(Kept::Refused)
        }
    }
}
