//! The command line, the environment and the defaults, decided: what is called, with what, on whom.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::options::{Options, Valid};
use crate::runtime::{Chain, NetworkList, Parameters, ResultCache, cache, conflist, invoke};
use crate::spec::config::{ValidAttachment, ValidAttachments};
use crate::spec::digest::sha512_hex;
use crate::spec::{CniError, Code, Command};

/// Where runtimes keep plugins.
const PLUGIN_DIRECTORY: &str = "/opt/cni/bin";

/// Where `ip netns` keeps its namespaces. Both are the same place, but for cnitool they make different containers.
const NETNS_DIRECTORIES: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// The name of the interface unless another is asked for.
const IFNAME: &str = "eth0";

/// One call of the tool, ready to be carried out.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) list: NetworkList,
    /// Files of the net directory that could not be read.
    pub(super) passed_over: Vec<CniError>,
    path: Vec<PathBuf>,
    cache: ResultCache,
    deadline: Duration,
    /// Of no meaning for the verbs that are not about an attachment.
    pub(super) parameters: Parameters,
    pub(super) valid: ValidAttachments,
}

impl Session {
    /// Decides what the options leave open: by the variable of the environment, by what the cache has of ADD, by the
    /// default, in this order.
    pub(super) fn new(
        options: &Options,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, CniError> {
        let directory = |option: &Option<PathBuf>, variable: Option<String>, default: &str| {
            option.clone().or(variable.map(PathBuf::from)).unwrap_or_else(|| default.into())
        };
        let net_dir = directory(&options.net_dir, variable("NETCONFPATH"), conflist::DIRECTORY);
        let found = NetworkList::load(&net_dir, &options.network)?;
        let path = match options.plugin_dirs.as_slice() {
            [] => variable("CNI_PATH")
                .unwrap_or_else(|| PLUGIN_DIRECTORY.to_owned())
                .split(':')
                .map(PathBuf::from)
                .collect(),
            dirs => dirs.to_vec(),
        };
        let cache = ResultCache::new(&directory(&options.cache_dir, None, cache::DIRECTORY));
        let parameters = if options.command.has_attachment() {
            parameters(options, variable, &cache, &found.list.name)?
        } else {
            Parameters::default()
        };
        Ok(Self {
            list: found.list,
            passed_over: found.passed_over,
            path: path.into_iter().filter(|d: &PathBuf| !d.as_os_str().is_empty()).collect(),
            cache,
            deadline: options.timeout.unwrap_or(invoke::DEADLINE),
            parameters,
            valid: valid(&options.valid),
        })
    }

    /// The network's plugins.
    pub(super) fn chain(&self) -> Chain<'_> {
        Chain { list: &self.list, path: &self.path, cache: &self.cache, deadline: self.deadline }
    }

    /// Whether the result of an earlier ADD is kept.
    pub(super) fn is_attached(&self) -> bool {
        self.cache.load(&self.parameters.attachment(&self.list.name)).is_ok_and(|entry| entry.is_some())
    }
}

fn parameters(
    options: &Options,
    variable: &dyn Fn(&str) -> Option<String>,
    cache: &ResultCache,
    network: &str,
) -> Result<Parameters, CniError> {
    let ifname =
        options.ifname.clone().or_else(|| variable("CNI_IFNAME")).unwrap_or_else(|| IFNAME.to_owned());
    let with_netns = |netns: String| Parameters {
        container_id: options.container_id.clone().unwrap_or_else(|| container_id_of(&netns)),
        ifname: ifname.clone(),
        netns,
        ..Parameters::default()
    };
    let candidates: Vec<Parameters> = match &options.netns {
        Some(netns) => netns_paths(netns)?.into_iter().map(with_netns).collect(),
        None => vec![with_netns(String::new())],
    };
    for candidate in &candidates {
        candidate.check()?;
    }
    let is_known =
        |candidate: &Parameters| cache.load(&candidate.attachment(network)).is_ok_and(|e| e.is_some());
    let mut parameters = candidates
        .iter()
        .find(|candidate| is_known(candidate))
        .or_else(|| candidates.iter().find(|candidate| Path::new(&candidate.netns).exists()))
        .or(candidates.first())
        .cloned()
        .unwrap_or_default();

    let args = options.args.clone().or_else(|| variable("CNI_ARGS"));
    let capability_args = options.capability_args.clone().or_else(|| variable("CAP_ARGS"));
    if let Some(text) = &args {
        parameters.args = Parameters::parse_args(text)?;
    }
    if let Some(text) = &capability_args {
        parameters.capability_args = parse_capability_args(text)?;
    }
    // The specification wants the same parameters on CHECK and DEL as on ADD.
    if options.command != Command::Add
        && let Ok(Some(entry)) = cache.load(&parameters.attachment(network))
    {
        if args.is_none() {
            parameters.args = entry.parameters.args;
        }
        if capability_args.is_none() {
            parameters.capability_args = entry.parameters.capability_args;
        }
        if options.netns.is_none() {
            parameters.netns = entry.parameters.netns;
        }
    }
    if options.command != Command::Del {
        check_netns(&parameters)?;
    }
    Ok(parameters)
}

/// The paths that a NETNS of the command line may mean.
fn netns_paths(text: &str) -> Result<Vec<String>, CniError> {
    if text.contains('/') {
        let path = std::path::absolute(text)
            .map_err(|e| CniError::new(Code::InvalidEnvironment, format!("NETNS {text:?}: {e}")))?;
        return Ok(vec![clean(&path).display().to_string()]);
    }
    if matches!(text, "" | "." | "..") {
        let msg = format!("NETNS {text:?} is neither a name nor a path of a network namespace");
        return Err(CniError::new(Code::InvalidEnvironment, msg));
    }
    Ok(NETNS_DIRECTORIES.iter().map(|directory| format!("{directory}/{text}")).collect())
}

/// An absolute path without `.` and `..`, by its text alone, as Go has it: cnitool hashes such paths.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean
}

/// The ID that cnitool gives to a namespace.
fn container_id_of(netns: &str) -> String {
    format!("cnitool-{}", sha512_hex(&[netns], 20))
}

fn check_netns(parameters: &Parameters) -> Result<(), CniError> {
    let netns = &parameters.netns;
    let invalid = |msg: String| CniError::new(Code::InvalidEnvironment, msg);
    if netns.is_empty() {
        let msg = format!("the network namespace of container {} is not known", parameters.container_id);
        return Err(invalid(msg).with_details("give NETNS, or the --ifname that add had"));
    }
    std::fs::metadata(netns).map(drop).map_err(|error| {
        let error = invalid(format!("network namespace {netns}: {error}"));
        match NETNS_DIRECTORIES.iter().find_map(|d| netns.strip_prefix(d)?.strip_prefix('/')) {
            Some(name) => error.with_details(format!("`ip netns add {name}` makes one")),
            None => error,
        }
    })
}

fn parse_capability_args(text: &str) -> Result<Map<String, Value>, CniError> {
    let invalid = |why: String| {
        CniError::new(Code::Decoding, format!("capability arguments: {why}"))
            .with_details(r#"they look like {"mac": "02:00:00:00:00:01"}"#)
    };
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(invalid("this is not a JSON object".to_owned())),
        Err(error) => Err(invalid(format!("this is not JSON: {error}"))),
    }
}

fn valid(valid: &Valid) -> ValidAttachments {
    match valid {
        Valid::NotSaid => ValidAttachments::NotGiven,
        Valid::None => ValidAttachments::Only(Vec::new()),
        Valid::Listed(list) => ValidAttachments::Only(
            list.iter()
                .map(|text| {
                    let (container_id, ifname) = text.split_once('/').unwrap_or((text, IFNAME));
                    ValidAttachment { container_id: container_id.to_owned(), ifname: ifname.to_owned() }
                })
                .collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_is_the_one_of_cnitool() {
        // printf /var/run/netns/testing | sha512sum | cut -c -20
        assert_eq!(netns_paths("/var/run//x/../netns/./testing/").unwrap(), ["/var/run/netns/testing"]);
        assert_eq!(container_id_of("/var/run/netns/testing"), "cnitool-77383ca0a0715733ca6f");
    }

    #[test]
    fn a_bare_name_is_one_of_ip_netns() {
        assert_eq!(netns_paths("web").unwrap(), ["/run/netns/web", "/var/run/netns/web"]);
        assert!(netns_paths("..").is_err());
        assert!(netns_paths("").is_err());
        let relative = netns_paths("./web").unwrap();
        assert_eq!(relative, [std::env::current_dir().unwrap().join("web").display().to_string()]);
    }

    #[test]
    fn a_valid_attachment_has_eth0_unless_it_has_another() {
        let listed = valid(&Valid::Listed(vec!["a".into(), "b/net1".into()]));
        let one = |id: &str, ifname: &str| ValidAttachment { container_id: id.into(), ifname: ifname.into() };
        assert_eq!(listed, ValidAttachments::Only(vec![one("a", "eth0"), one("b", "net1")]));
    }
}
