//! The verbs over a whole list of plugins (specification section 3; libcni's `api.go`).

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::cache::{Entry, ResultCache};
use super::conflist::{NetworkList, Plugin};
use super::invoke::{self, Invocation};
use super::parameters::Parameters;
use crate::spec::config::ValidAttachments;
use crate::spec::request::Environment;
use crate::spec::{Attachment, CniError, CniResult, Code, Command, Version, version};

/// A network's plugins, ready to be called one after another.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a> {
    /// The network.
    pub list: &'a NetworkList,
    /// The directories where plugins are looked for: `CNI_PATH`.
    pub path: &'a [PathBuf],
    /// Where results are kept.
    pub cache: &'a ResultCache,
    /// How long each plugin may take.
    pub deadline: Duration,
}

/// What went wrong, and where in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The verb.
    pub command: Command,
    /// The type of the plugin that failed; `None` if it was not a plugin.
    pub plugin: Option<String>,
    /// The attachment, if the failure is not about the one that the caller named: a stale one that GC removes.
    pub stale: Option<Box<Attachment>>,
    /// The error, if of a plugin just as it printed it.
    pub error: CniError,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(plugin) = &self.plugin {
            write!(f, "plugin {plugin} failed on ")?;
        }
        f.write_str(self.command.as_str())?;
        if let Some(attachment) = &self.stale {
            write!(f, " of {attachment}")?;
        }
        write!(f, ": {}", self.error)
    }
}

impl std::error::Error for Failure {}

/// The versions that a plugin of the list says it speaks.
#[derive(Clone, Debug)]
pub struct Spoken {
    /// Its type.
    pub plugin_type: String,
    /// Its file and what it answered.
    pub answer: Result<(PathBuf, Vec<String>), Failure>,
}

impl Chain<'_> {
    /// Attaches a container; the result is the last plugin's.
    ///
    /// Stops at the first error and leaves what was done until then, as libcni does: the caller is to call
    /// [`Chain::undo`]. No plugin is executed unless all are there.
    pub fn add(&self, parameters: &Parameters) -> Result<Map<String, Value>, Failure> {
        let here = |error| failure(Command::Add, None, error);
        parameters.check().map_err(here)?;
        self.find_all(Command::Add)?;
        let mut result = None;
        for plugin in &self.list.plugins {
            let call = Call { parameters: Some(parameters), prev_result: result.as_ref(), ..Call::default() };
            let at = |error| failure(Command::Add, Some(plugin), error);
            let printed = self.call(Command::Add, plugin, call)?.ok_or_else(|| {
                at(CniError::new(Code::Delegate, "it ended without an error and without a result"))
            })?;
            result = Some(in_shape(printed, self.list.version).map_err(at)?);
        }
        let result = result.unwrap_or_default();
        let entry = Entry {
            network: self.list.name.clone(),
            parameters: parameters.clone(),
            config: self.list.document.clone(),
            result: result.clone(),
        };
        self.cache.store(&entry).map_err(here)?;
        Ok(result)
    }

    /// Detaches a container: the plugins in reverse order, with the result of ADD (since 0.4.0) if there is one. Stops
    /// at the first error, and keeps the result until it succeeds.
    pub fn del(&self, parameters: &Parameters) -> Result<(), Failure> {
        match self.del_each(parameters).find_map(Result::err) {
            Some(failure) => Err(failure),
            None => self.forget(parameters),
        }
    }

    /// Detaches a container as [`Chain::del`] does, but goes on past errors: after a failed ADD the plugin that failed
    /// may well refuse DEL too, for instance because it cannot make sense of its configuration, and what the others
    /// have made must go all the same.
    pub fn undo(&self, parameters: &Parameters) -> Vec<Failure> {
        let mut failures: Vec<Failure> = self.del_each(parameters).filter_map(Result::err).collect();
        if failures.is_empty() {
            failures.extend(self.forget(parameters).err());
        }
        failures
    }

    /// Calls the plugins with DEL, the last one first, as the iterator is driven.
    fn del_each(&self, parameters: &Parameters) -> impl Iterator<Item = Result<(), Failure>> {
        let checked = parameters.check().map_err(|error| failure(Command::Del, None, error));
        // A cache that cannot be read must not keep anybody from cleaning up.
        let result = match self.cache.load(&parameters.attachment(&self.list.name)) {
            Ok(Some(entry)) if self.list.version >= Version::V0_4_0 => {
                in_shape(entry.result, self.list.version).ok()
            }
            _ => None,
        };
        let plugins = if checked.is_ok() { self.list.plugins.as_slice() } else { &[] };
        let calls = plugins.iter().rev().map(move |plugin| {
            let call = Call { parameters: Some(parameters), prev_result: result.as_ref(), ..Call::default() };
            self.call(Command::Del, plugin, call).map(drop)
        });
        std::iter::once(checked).chain(calls)
    }

    fn forget(&self, parameters: &Parameters) -> Result<(), Failure> {
        let attachment = parameters.attachment(&self.list.name);
        self.cache.remove(&attachment).map_err(|error| failure(Command::Del, None, error))
    }

    /// Asks the plugins whether an attachment is as ADD left it; a network with `disableCheck` asks none.
    ///
    /// Errors: the first plugin's; code 1 if the network's version is before 0.4.0; code 105 without a result of ADD,
    /// against which there would be nothing to check.
    pub fn check(&self, parameters: &Parameters) -> Result<(), Failure> {
        let here = |error| failure(Command::Check, None, error);
        parameters.check().map_err(here)?;
        self.check_version(Command::Check).map_err(here)?;
        if self.list.disable_check {
            return Ok(());
        }
        let attachment = parameters.attachment(&self.list.name);
        let entry = self.cache.load(&attachment).map_err(here)?.ok_or_else(|| {
            let msg = format!("no result of an ADD is known for {attachment}");
            here(CniError::new(Code::State, msg))
        })?;
        let result = in_shape(entry.result, self.list.version).map_err(here)?;
        for plugin in &self.list.plugins {
            let call = Call { parameters: Some(parameters), prev_result: Some(&result), ..Call::default() };
            self.call(Command::Check, plugin, call)?;
        }
        Ok(())
    }

    /// Removes what belongs to no valid attachment: first by DEL whatever the cache knows and the caller does not,
    /// then by GC of each plugin (since 1.1.0). Goes on past errors. A network with `disableGC` is left alone.
    ///
    /// If the caller says nothing about valid attachments, those are detached whose namespace is gone, and the plugins
    /// are told nothing either. libcni detaches all then, which on a node with living pods nobody can mean.
    pub fn gc(&self, valid: &ValidAttachments) -> Vec<Failure> {
        let mut failures = Vec::new();
        if self.list.disable_gc {
            return failures;
        }
        match self.cache.attachments(&self.list.name) {
            Ok(entries) => {
                for entry in entries.iter().filter(|entry| is_stale(&entry.parameters, valid)) {
                    if let Err(failure) = self.del(&entry.parameters) {
                        let stale = Some(Box::new(entry.parameters.attachment(&self.list.name)));
                        failures.push(Failure { stale, ..failure });
                    }
                }
            }
            Err(error) => failures.push(failure(Command::Gc, None, error)),
        }
        if self.list.version < Command::Gc.since() {
            return failures;
        }
        for plugin in &self.list.plugins {
            let call = Call { valid: Some(valid), ..Call::default() };
            failures.extend(self.call(Command::Gc, plugin, call).err());
        }
        failures
    }

    /// Asks the plugins whether an ADD could be served now; the first one's error if not. Before 1.1.0 nobody can be
    /// asked, and all is taken to be well.
    pub fn status(&self) -> Result<(), Failure> {
        if self.list.version < Command::Status.since() {
            return Ok(());
        }
        for plugin in &self.list.plugins {
            self.call(Command::Status, plugin, Call::default())?;
        }
        Ok(())
    }

    /// Asks each plugin which versions it speaks.
    pub fn versions(&self) -> Vec<Spoken> {
        let ask = |plugin: &Plugin| {
            let program = self.find(Command::Version, plugin)?;
            // Very old plugins want these variables to be set for every verb.
            let environment = Environment {
                command: Command::Version.as_str().to_owned(),
                netns: "none".to_owned(),
                ifname: "none".to_owned(),
                path: self.path_text(),
                ..Environment::default()
            };
            let stdin = json!({ "cniVersion": version::CURRENT.as_str() }).to_string().into_bytes();
            let deadline = self.deadline;
            let answer =
                Invocation { program: &program, environment: &environment, stdin: &stdin, deadline }.run();
            let versions =
                read_versions(answer).map_err(|error| failure(Command::Version, Some(plugin), error))?;
            Ok((program, versions))
        };
        self.list
            .plugins
            .iter()
            .map(|plugin| Spoken { plugin_type: plugin.plugin_type.clone(), answer: ask(plugin) })
            .collect()
    }

    /// Whether all plugins are there; the error names the first that is not, as the given verb would.
    pub fn find_all(&self, command: Command) -> Result<(), Failure> {
        self.list.plugins.iter().try_for_each(|plugin| self.find(command, plugin).map(drop))
    }

    fn check_version(&self, command: Command) -> Result<(), CniError> {
        if self.list.version >= command.since() {
            return Ok(());
        }
        let msg = format!("{} is there since version {}", command.as_str(), command.since());
        Err(CniError::new(Code::IncompatibleVersion, msg).with_details(format!(
            "{} has cniVersion {}",
            self.list.file.display(),
            self.list.version
        )))
    }

    fn find(&self, command: Command, plugin: &Plugin) -> Result<PathBuf, Failure> {
        invoke::find(&plugin.plugin_type, self.path).map_err(|error| failure(command, Some(plugin), error))
    }

    fn path_text(&self) -> String {
        self.path.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(":")
    }

    /// Executes one plugin of the list.
    fn call(
        &self,
        command: Command,
        plugin: &Plugin,
        call: Call<'_>,
    ) -> Result<Option<Map<String, Value>>, Failure> {
        let program = self.find(command, plugin)?;
        let mut environment = Environment {
            command: command.as_str().to_owned(),
            path: self.path_text(),
            netns_override: std::env::var("CNI_NETNS_OVERRIDE").unwrap_or_default(),
            ..Environment::default()
        };
        if let Some(parameters) = call.parameters {
            environment.container_id.clone_from(&parameters.container_id);
            environment.netns.clone_from(&parameters.netns);
            environment.ifname.clone_from(&parameters.ifname);
            environment.args = parameters.args_text();
        }
        let stdin = Value::Object(call.configuration(self.list, plugin)).to_string().into_bytes();
        let deadline = self.deadline;
        let value = Invocation { program: &program, environment: &environment, stdin: &stdin, deadline }
            .run()
            .map_err(|error| failure(command, Some(plugin), error))?;
        Ok(match value {
            Some(Value::Object(object)) => Some(object),
            _ => None,
        })
    }
}

/// What one call of a plugin has beside the list.
#[derive(Clone, Copy, Default)]
struct Call<'a> {
    parameters: Option<&'a Parameters>,
    prev_result: Option<&'a Map<String, Value>>,
    valid: Option<&'a ValidAttachments>,
}

impl Call<'_> {
    /// The plugin's configuration (specification section 3, "Deriving request configuration from plugin
    /// configuration").
    fn configuration(&self, list: &NetworkList, plugin: &Plugin) -> Map<String, Value> {
        let mut object = plugin.object.clone();
        object.insert("name".to_owned(), json!(list.name));
        object.insert("cniVersion".to_owned(), json!(list.version.as_str()));
        if let Some(result) = self.prev_result {
            object.insert("prevResult".to_owned(), Value::Object(result.clone()));
        }
        if let Some(parameters) = self.parameters {
            let given: Map<String, Value> = plugin
                .capabilities
                .iter()
                .filter_map(|name| Some((name.clone(), parameters.capability_args.get(name)?.clone())))
                .collect();
            if !given.is_empty() {
                object.insert("runtimeConfig".to_owned(), Value::Object(given));
            }
        }
        if let Some(ValidAttachments::Only(valid)) = self.valid {
            let valid: Value = valid
                .iter()
                .map(|one| json!({ "containerID": one.container_id, "ifname": one.ifname }))
                .collect();
            // The second spelling was in a draft of the specification, and there are plugins that know no other.
            object.insert("cni.dev/attachments".to_owned(), valid.clone());
            object.insert("cni.dev/valid-attachments".to_owned(), valid);
        }
        object
    }
}

fn failure(command: Command, plugin: Option<&Plugin>, error: CniError) -> Failure {
    Failure { command, plugin: plugin.map(|p| p.plugin_type.clone()), stale: None, error }
}

fn is_stale(parameters: &Parameters, valid: &ValidAttachments) -> bool {
    match valid {
        ValidAttachments::Only(valid) => !valid
            .iter()
            .any(|one| one.container_id == parameters.container_id && one.ifname == parameters.ifname),
        ValidAttachments::NotGiven => {
            !parameters.netns.is_empty() && matches!(Path::new(&parameters.netns).try_exists(), Ok(false))
        }
    }
}

/// A result in a shape that plugins of this version read. Where it has that already it is left as it is, so that
/// nothing is lost that only plugins understand. Without a version of its own it is taken to be of this one.
fn in_shape(mut result: Map<String, Value>, version: Version) -> Result<Map<String, Value>, CniError> {
    let own = match result.get("cniVersion") {
        Some(Value::String(text)) if !text.is_empty() => text.parse().map_err(|e| {
            CniError::new(Code::IncompatibleVersion, format!("the result's cniVersion is not known: {e}"))
        })?,
        _ => {
            result.insert("cniVersion".to_owned(), json!(version.as_str()));
            version
        }
    };
    let value = Value::Object(result);
    let decoded = CniResult::from_value(&value, own, "the result")?;
    let value = if own.family() == version.family() { value } else { decoded.to_value(version)? };
    match value {
        Value::Object(object) => Ok(object),
        _ => Ok(Map::new()),
    }
}

/// The versions in an answer to VERSION.
fn read_versions(answer: Result<Option<Value>, CniError>) -> Result<Vec<String>, CniError> {
    let unclear = |why: &str| Err(CniError::new(Code::Delegate, format!("its answer has no {why}")));
    let answer = match answer {
        Ok(Some(answer)) => answer,
        Ok(None) => return unclear("JSON at all"),
        // The verb is younger than the first plugins.
        Err(error) if error.msg == "unknown CNI_COMMAND: VERSION" => return Ok(vec!["0.1.0".to_owned()]),
        Err(error) => return Err(error),
    };
    let list: Vec<String> = answer
        .get("supportedVersions")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default();
    match answer.get("cniVersion").and_then(Value::as_str) {
        None | Some("") => unclear("cniVersion"),
        // The first version of the verb had no list.
        Some("0.2.0") if list.is_empty() => Ok(vec!["0.1.0".to_owned(), "0.2.0".to_owned()]),
        Some(_) if list.is_empty() => unclear("supportedVersions"),
        Some(_) => Ok(list),
    }
}

#[cfg(test)]
mod tests;
