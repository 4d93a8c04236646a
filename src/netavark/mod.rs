//! podman 5 and later: netavark's plugin interface, spoken by the same program.
//!
//! podman executes `create` when a network is made, netavark `setup NETNS` and `teardown NETNS` when a container comes
//! and goes; both write JSON on stdin and read JSON from stdout. Here a network and what a container wants of it become
//! the configuration of the CNI plugin `bridgehead`, which does the work: so what holds for that (roll-back, repair, DEL
//! without anything) holds here.
//!
//! An error is `{"error": "..."}` on stdout with exit status 1. podman refuses an object with more keys.

mod creation;
pub mod network;
mod occupied;
pub mod options;
mod translation;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::dispatch;
use crate::registry;
use crate::spec::names::check_ifname;
use crate::spec::request::Environment;
use crate::spec::{CniError, Code, Command, Request};
use network::Attaching;

/// The version of netavark's plugin interface.
const API_VERSION: &str = "1.0.0";

/// Names the firewall driver that podman is configured to use.
const FIREWALL_DRIVER: &str = "NETAVARK_FW";

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `info`: versions.
    Info,
    /// `create`: complete the description of a new network.
    Create,
    /// `setup NETNS`: attach a container.
    Setup,
    /// `teardown NETNS`: detach it.
    Teardown,
}

impl Verb {
    /// The verb that a first argument is.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "info" => Self::Info,
            "create" => Self::Create,
            "setup" => Self::Setup,
            "teardown" => Self::Teardown,
            _ => return None,
        })
    }
}

/// Serves a call; `arguments` are those after the verb.
pub fn run(verb: Verb, mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let netns = arguments.next().map(PathBuf::from);
    let outcome = dispatch::caught(|| match verb {
        Verb::Info => {
            answer(&json!({"version": env!("CARGO_PKG_VERSION"), "api_version": API_VERSION})).map(|()| None)
        }
        Verb::Create => answer(&creation::complete(&dispatch::read_stdin()?)?).map(|()| None),
        Verb::Setup => {
            let (attaching, netns) = (attaching()?, given(netns)?);
            let driver = std::env::var(FIREWALL_DRIVER).unwrap_or_default();
            let config = translation::for_setup(&attaching, &driver)?;
            std::fs::metadata(&netns).map_err(|e| {
                let msg = format!("network namespace {}: {e}", netns.display());
                CniError::new(Code::InvalidNetns, msg)
            })?;
            let request = request(Command::Add, &attaching, netns, &config)?;
            dispatch::attach(registry::WHOLE, &request, |result| {
                Ok(answer(&translation::status_block(&request.attachment.ifname, result))?)
            })
            // No teardown comes after a setup that failed.
            .inspect_err(|_| remove_unused(&attaching, &request).unwrap_or_else(|e| log::warn!("{e}")))
        }
        Verb::Teardown => {
            let (attaching, netns) = (attaching()?, given(netns)?);
            attaching.check_names()?;
            let request = request(Command::Del, &attaching, netns, &translation::for_teardown(&attaching))?;
            dispatch::detach(registry::WHOLE, &request)?;
            // Of containers whose namespace is gone there is no teardown, nor of networks.
            dispatch::collect_dead(registry::WHOLE, &request).unwrap_or_else(|e| log::warn!("{e}"));
            remove_unused(&attaching, &request).map(|()| None)
        }
    });
    match outcome {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(aftermath)) => aftermath.end(),
        Err(error) => {
            answer(&json!({"error": error.to_string()})).unwrap_or_else(|_| log::error!("{error}"));
            ExitCode::FAILURE
        }
    }
}

/// Removes what there is for a network, if no container is on it any more. Nobody comes back for it, so what fails for a
/// moment (`EBUSY`) is tried again.
fn remove_unused(attaching: &Attaching, request: &Request) -> Result<(), CniError> {
    // A file has its name, and nobody has checked this network.
    let Some(bridge) = attaching.network.bridge().filter(|name| check_ifname(name).is_ok()) else {
        return Ok(());
    };
    let subnets = attaching.network.prefixes();
    let remove = || dispatch::remove_unused_bridge(&bridge, &subnets, request);
    remove().or_else(|_| remove())
}

fn answer(value: &Value) -> Result<(), CniError> {
    dispatch::write_stdout(&format!("{value}\n"))
}

fn attaching() -> Result<Attaching, CniError> {
    network::decode(&network::object(&dispatch::read_stdin()?)?)
}

fn given(netns: Option<PathBuf>) -> Result<PathBuf, CniError> {
    let missing = "NETNS: the path of the container's network namespace is missing, after the verb";
    netns.ok_or_else(|| CniError::new(Code::InvalidEnvironment, missing))
}

/// The call of the CNI plugin. Without a `CNI_PATH`, all IPAM plugins are this program.
fn request(
    command: Command,
    attaching: &Attaching,
    netns: PathBuf,
    config: &Value,
) -> Result<Request, CniError> {
    let environment = Environment {
        container_id: attaching.container_id.clone(),
        ifname: attaching.network_options.interface_name.clone(),
        ..Environment::default()
    };
    let mut request = Request::parse(command, &environment, config.to_string().into_bytes())?;
    request.netns = Some(netns);
    Ok(request)
}
