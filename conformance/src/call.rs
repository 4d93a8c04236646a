//! One execution of a plugin, exactly as a runtime does it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::exec::{Finished, PATH, Running};
use crate::pod::Pod;
use crate::sandbox::{SOMEWHERE, Sandbox};

/// What a plugin is to be called with. Every setter gives a changed copy, so one value serves all verbs of an
/// attachment.
#[derive(Clone, Debug)]
pub struct Call {
    plugin: String,
    directory: Option<PathBuf>,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    input: Vec<u8>,
    config: Option<Value>,
}

impl Call {
    /// A call of the plugin with that file name; no variable but `CNI_PATH` is set, and stdin is empty.
    pub fn new(plugin: &str) -> Self {
        Self {
            plugin: plugin.to_owned(),
            directory: None,
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            input: Vec::new(),
            config: None,
        }
    }

    /// Takes the executable from that directory instead of the one under test; `CNI_PATH` follows unless it is set.
    pub fn from(&self, directory: impl Into<PathBuf>) -> Self {
        let mut call = self.clone();
        call.directory = Some(directory.into());
        call
    }

    /// Calls it with these arguments, which runtimes of CNI never do, but netavark.
    pub fn arguments(&self, arguments: &[&str]) -> Self {
        let mut call = self.clone();
        call.arguments = arguments.iter().map(|it| (*it).to_owned()).collect();
        call
    }

    /// The same for another verb of netavark's, which is the first argument.
    pub fn verb(&self, verb: &str) -> Self {
        let mut call = self.clone();
        if let Some(first) = call.arguments.first_mut() {
            verb.clone_into(first);
        }
        call
    }

    /// Sets an environment variable.
    pub fn env(&self, key: &str, value: &str) -> Self {
        let mut call = self.clone();
        call.environment.insert(key.to_owned(), value.to_owned());
        call
    }

    /// Removes an environment variable.
    pub fn without(&self, key: &str) -> Self {
        let mut call = self.clone();
        call.environment.remove(key);
        call
    }

    /// Sets `CNI_COMMAND`.
    pub fn command(&self, command: &str) -> Self {
        self.env("CNI_COMMAND", command)
    }

    /// `CNI_COMMAND=ADD`.
    pub fn add(&self) -> Self {
        self.command("ADD")
    }

    /// `CNI_COMMAND=DEL`.
    pub fn del(&self) -> Self {
        self.command("DEL")
    }

    /// `CNI_COMMAND=CHECK`.
    pub fn check(&self) -> Self {
        self.command("CHECK")
    }

    /// `CNI_COMMAND=STATUS` without the variables of an attachment.
    pub fn status(&self) -> Self {
        self.command("STATUS").without("CNI_CONTAINERID").without("CNI_NETNS").without("CNI_IFNAME")
    }

    /// `CNI_COMMAND=GC` without the variables of an attachment.
    pub fn gc(&self) -> Self {
        self.command("GC").without("CNI_CONTAINERID").without("CNI_NETNS").without("CNI_IFNAME")
    }

    /// Sets `CNI_CONTAINERID`.
    pub fn id(&self, id: &str) -> Self {
        self.env("CNI_CONTAINERID", id)
    }

    /// Sets `CNI_IFNAME`.
    pub fn ifname(&self, ifname: &str) -> Self {
        self.env("CNI_IFNAME", ifname)
    }

    /// Sets `CNI_NETNS` to the file that names the pod's namespace.
    pub fn netns(&self, pod: &Pod) -> Self {
        self.env("CNI_NETNS", pod.netns())
    }

    /// Sets `CNI_NETNS` to a pod that is there, and that is all there is to say of it.
    pub fn somewhere(&self) -> Self {
        self.env("CNI_NETNS", SOMEWHERE)
    }

    /// Sets `CNI_ARGS`.
    pub fn args(&self, args: &str) -> Self {
        self.env("CNI_ARGS", args)
    }

    /// The network configuration for stdin.
    pub fn config(&self, config: Value) -> Self {
        let mut call = self.clone();
        call.input = config.to_string().into_bytes();
        call.config = Some(config);
        call
    }

    /// Sets one key of the network configuration.
    pub fn set(&self, key: &str, value: Value) -> Self {
        let mut config = self.config.clone().unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        config[key] = value;
        self.config(config)
    }

    /// Sets `prevResult`.
    pub fn prev(&self, result: &Value) -> Self {
        self.set("prevResult", result.clone())
    }

    /// Exactly these bytes on stdin.
    pub fn stdin(&self, bytes: &[u8]) -> Self {
        let mut call = self.clone();
        call.input = bytes.to_vec();
        call.config = None;
        call
    }

    /// Starts the plugin without waiting for it.
    pub fn start(&self, host: &Sandbox) -> Result<Started> {
        let directory = self.directory.clone().unwrap_or_else(|| host.plugins().to_owned());
        let path = directory.join(&self.plugin);
        let mut environment = self.environment.clone();
        environment.entry("CNI_PATH".to_owned()).or_insert_with(|| directory.to_string_lossy().into_owned());
        if environment.get("CNI_NETNS").is_some_and(|netns| netns == SOMEWHERE) {
            host.make_somewhere()?;
        }
        if let Some(id) = environment.get("CNI_CONTAINERID") {
            host.remember(id);
        }
        environment.retain(|_, value| value != UNSET);
        let mut command = Command::new(&path);
        command.args(&self.arguments).env_clear().env("PATH", PATH).envs(&environment).current_dir("/");
        let mut line = String::new();
        for (key, value) in &environment {
            line.push_str(&format!("{key}='{value}' "));
        }
        let shown = String::from_utf8_lossy(&self.input[..self.input.len().min(1200)]).into_owned();
        let words = [vec![path.to_string_lossy().into_owned()], self.arguments.clone()].concat().join(" ");
        line.push_str(&format!("{words} <<< '{shown}'"));
        let running =
            Running::start(command, &self.input).with_context(|| format!("calling {}", self.plugin))?;
        Ok(Started { line, running })
    }

    /// Executes the plugin and waits for its answer.
    pub fn run(&self, host: &Sandbox) -> Result<Answer> {
        self.start(host)?.answer(host)
    }

    /// Removes even the variable that every call has by default, `CNI_PATH`.
    pub fn without_path(&self) -> Self {
        self.env("CNI_PATH", UNSET)
    }
}

/// Stands for a variable that is not to be set at all; NUL cannot be part of any.
const UNSET: &str = "\0";

/// A plugin that runs.
#[derive(Debug)]
pub struct Started {
    line: String,
    running: Running,
}

impl Started {
    /// The plugin's process id, which stays its own until it has answered.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Waits for the answer.
    pub fn answer(self, host: &Sandbox) -> Result<Answer> {
        let line = self.line;
        let finished = match self.running.finish() {
            Ok(finished) => finished,
            Err(error) => {
                host.note(format!("{line}\n  {error:#}"));
                return Err(error);
            }
        };
        host.note(format!(
            "{line}\n  {} after {:?}\n  stdout: {}\n  stderr: {}",
            finished.outcome(),
            finished.took,
            finished.stdout.trim_end(),
            finished.stderr.trim_end()
        ));
        let json = serde_json::from_str(&finished.stdout).ok();
        Ok(Answer { finished, json })
    }
}

/// What a plugin answered.
#[derive(Clone, Debug)]
pub struct Answer {
    finished: Finished,
    json: Option<Value>,
}

/// A CNI error object.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// `code`
    pub code: u64,
    /// `msg`
    pub msg: String,
    /// `details`, empty if there are none.
    pub details: String,
    /// The object as printed.
    pub json: Value,
}

impl Refusal {
    /// Message and details as one text.
    pub fn text(&self) -> String {
        format!("{}: {}", self.msg, self.details)
    }
}

impl Answer {
    /// The exit status; none if a signal ended the plugin.
    pub fn status(&self) -> Option<i32> {
        self.finished.status.code()
    }

    /// What it printed on stdout.
    pub fn stdout(&self) -> &str {
        &self.finished.stdout
    }

    /// What it printed on stderr.
    pub fn stderr(&self) -> &str {
        &self.finished.stderr
    }

    /// Its stdout as JSON, if that is what it is.
    pub fn json(&self) -> Option<&Value> {
        self.json.as_ref()
    }

    /// From start to end.
    pub fn took(&self) -> Duration {
        self.finished.took
    }

    /// Success with one JSON object on stdout, which is given back.
    pub fn result(&self) -> Result<Value> {
        self.succeeded()?;
        match &self.json {
            Some(json) if json.is_object() => Ok(json.clone()),
            _ => bail!("stdout is not one JSON object"),
        }
    }

    /// Success with nothing on stdout, as CHECK, DEL, GC and STATUS answer.
    pub fn silence(&self) -> Result<()> {
        self.succeeded()?;
        if !self.finished.stdout.is_empty() {
            bail!("wanted nothing on stdout, found {:?}", self.finished.stdout);
        }
        Ok(())
    }

    fn succeeded(&self) -> Result<()> {
        if self.finished.status.success() {
            return Ok(());
        }
        bail!("wanted success, found {}: {}", self.finished.outcome(), self.reason())
    }

    /// Failure with a CNI error object on stdout and nothing else there (specification section 5, "Error").
    pub fn refusal(&self) -> Result<Refusal> {
        match self.finished.status.code() {
            Some(0) => bail!("wanted an error, found success"),
            Some(_) => {}
            None => bail!("wanted an error, but the plugin was {}", self.finished.outcome()),
        }
        let Some(json) = &self.json else {
            bail!("the error on stdout is not one JSON object: {:?}", self.finished.stdout)
        };
        let Some(code) = json["code"].as_u64().filter(|code| *code != 0) else {
            bail!("the error has no code: {json}")
        };
        let msg = json["msg"].as_str().unwrap_or_default().to_owned();
        if msg.is_empty() {
            bail!("the error has no msg: {json}");
        }
        let details = json["details"].as_str().unwrap_or_default().to_owned();
        Ok(Refusal { code, msg, details, json: json.clone() })
    }

    /// Failure with that code.
    pub fn refused_with(&self, code: u64) -> Result<Refusal> {
        let refusal = self.refusal()?;
        if refusal.code != code {
            bail!("wanted error code {code}, found {}: {}", refusal.code, refusal.text());
        }
        Ok(refusal)
    }

    fn reason(&self) -> String {
        match self.json.as_ref().and_then(|json| json["msg"].as_str()) {
            Some(msg) => format!(
                "{msg} {}",
                self.json.as_ref().and_then(|json| json["details"].as_str()).unwrap_or_default()
            ),
            None => self.finished.stderr.trim().to_owned(),
        }
    }
}
