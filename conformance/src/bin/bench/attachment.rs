//! A chain of plugins on a pod, called the way libcni does it.

use crate::call::{Answer, Call};
use crate::host::Pod;
use crate::machine::PATH;
use crate::scenario::{NETWORK, Verb};
use crate::suite::Suite;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::Path;

/// The version that every reference release since 1.0.0 speaks.
const CNI_VERSION: &str = "1.0.0";
/// The version that brought STATUS.
const STATUS_VERSION: &str = "1.1.0";
/// Host port of the first pod, where a plugin has the portMappings capability.
const FIRST_HOST_PORT: usize = 20_000;

/// One chain of plugins from one suite.
pub(crate) struct Chain<'a> {
    /// Whose plugins.
    pub(crate) suite: &'a Suite,
    /// Their configurations, in the order of ADD.
    pub(crate) plugins: &'a [Value],
    /// How many ports of the host lead to each pod, where a plugin has the portMappings capability.
    pub(crate) ports: usize,
}

impl Chain<'_> {
    /// ADD: every plugin in order, each with the result of the one before. Returns what `run` measured for each,
    /// and the last result. Fails at the first plugin that fails, with all that it printed.
    pub(crate) fn add<M>(
        &self,
        pod: &Pod,
        run: impl Fn(&Call) -> Result<(M, Answer)>,
    ) -> Result<(Vec<M>, Value)> {
        let mut previous = None;
        let mut measured = Vec::with_capacity(self.plugins.len());
        for plugin in self.plugins {
            let call = self.call(Verb::Add, plugin, pod, previous.as_ref())?;
            let (measure, answer) = run(&call)?;
            let result = checked(&call, &answer).and_then(|()| parse_result(&answer.stdout));
            previous = Some(result.with_context(|| describe(&call, &answer))?);
            measured.push(measure);
        }
        Ok((measured, previous.unwrap_or(Value::Null)))
    }

    /// DEL: every plugin in reverse order, each with the last result of ADD. Returns and fails as `add` does.
    pub(crate) fn del<M>(
        &self,
        pod: &Pod,
        result: &Value,
        run: impl Fn(&Call) -> Result<(M, Answer)>,
    ) -> Result<Vec<M>> {
        let delete = |plugin| {
            let call = self.call(Verb::Del, plugin, pod, Some(result))?;
            let (measure, answer) = run(&call)?;
            checked(&call, &answer).with_context(|| describe(&call, &answer))?;
            Ok(measure)
        };
        self.plugins.iter().rev().map(delete).collect()
    }
    /// STATUS of a plugin.
    pub(crate) fn status(&self, plugin: &Value, pod: &Pod) -> Result<Call> {
        let mut plugin = plugin.clone();
        plugin["cniVersion"] = json!(STATUS_VERSION);
        self.call(Verb::Status, &plugin, pod, None)
    }

    /// The call for one plugin of the chain.
    fn call(&self, verb: Verb, plugin: &Value, pod: &Pod, previous: Option<&Value>) -> Result<Call> {
        let kind = plugin["type"].as_str().context("a scenario's plugin has no type")?;
        let mut config = plugin.clone();
        if config["cniVersion"].is_null() {
            config["cniVersion"] = json!(CNI_VERSION);
        }
        config["name"] = json!(NETWORK);
        if plugin["capabilities"]["portMappings"] == true {
            let first = FIRST_HOST_PORT + self.ports * pod.index;
            let port = |i| json!({"hostPort": first + i, "containerPort": 80 + i, "protocol": "tcp"});
            let ports: Vec<_> = (0..self.ports).map(port).collect();
            config["runtimeConfig"] = json!({ "portMappings": ports });
        }
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let environment = vec![
            ("CNI_COMMAND", verb.name().to_owned()),
            ("CNI_CONTAINERID", pod.container.clone()),
            ("CNI_NETNS", pod.netns.clone()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_ARGS", String::new()),
            ("CNI_PATH", self.suite.dir.display().to_string()),
            ("PATH", PATH.to_owned()),
        ];
        Ok(Call { program: self.suite.program(kind), environment, config: config.to_string() })
    }

    /// The first executable of the chain that the suite does not have.
    pub(crate) fn missing(&self) -> Option<&str> {
        let kinds = self.plugins.iter().flat_map(|plugin| [&plugin["type"], &plugin["ipam"]["type"]]);
        kinds.filter_map(Value::as_str).find(|kind| !self.suite.program(kind).is_file())
    }
}

/// VERSION, which needs no configuration and no pod.
pub(crate) fn version(program: &Path) -> Call {
    let environment = vec![("CNI_COMMAND", Verb::Version.name().to_owned()), ("PATH", PATH.to_owned())];
    Call { program: program.to_owned(), environment, config: String::new() }
}

/// The answer to VERSION is an object with a list of versions (CNI specification, section 2).
pub(crate) fn check_version(call: &Call, answer: &Answer) -> Result<()> {
    let check = || -> Result<()> {
        checked(call, answer)?;
        let object: Value = serde_json::from_str(&answer.stdout).context("the answer is no JSON")?;
        match object["supportedVersions"].as_array() {
            Some(versions) if !versions.is_empty() => Ok(()),
            _ => bail!("the answer has no supportedVersions"),
        }
    };
    check().with_context(|| describe(call, answer))
}

/// STATUS is answered by the exit status alone.
pub(crate) fn check_status(call: &Call, answer: &Answer) -> Result<()> {
    checked(call, answer).with_context(|| describe(call, answer))
}

/// Fails with the message of the CNI error object, if the plugin printed one.
fn checked(call: &Call, answer: &Answer) -> Result<()> {
    if answer.status.success() {
        return Ok(());
    }
    let object: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
    let message = object["msg"].as_str().unwrap_or("no error object");
    bail!("{} ended with {}: {}", call.program.display(), answer.status, message.trim_end())
}

/// A result must be JSON and have addresses; every scenario has IPAM.
fn parse_result(stdout: &str) -> Result<Value> {
    let result: Value = serde_json::from_str(stdout).context("the result is no JSON")?;
    match result["ips"].as_array() {
        Some(ips) if !ips.is_empty() => Ok(result),
        _ => bail!("the result has no addresses"),
    }
}

/// All that can help to understand a failed call.
fn describe(call: &Call, answer: &Answer) -> String {
    let environment: Vec<_> = call.environment.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!(
        "{} {}\nstdin: {}\nstdout: {}\nstderr: {}\n",
        environment.join(" "),
        call.program.display(),
        call.config,
        answer.stdout.trim_end(),
        answer.stderr.trim_end(),
    )
}
