//! The results of ADD, kept for CHECK, DEL and GC: libcni's files, byte by byte in the same place.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::bounded_read::bounded_read;
use super::{Parameters, base64};
use crate::spec::{Attachment, CniError, Code, json};

/// Where libcni keeps its cache unless it is told otherwise.
pub const DIRECTORY: &str = "/var/lib/cni";

/// Most bytes of a file: a list of plugins in base64, and the longest result that a plugin may print.
const MAX_BYTES: usize = 8 << 20;

/// `kind` of a file that has more than the bare result.
const KIND: &str = "cniCacheV1";

/// The cache: one file for each attachment, `results/<network>-<container>-<interface>`.
#[derive(Clone, Debug)]
pub struct ResultCache {
    results: PathBuf,
}

/// What is kept of an attachment.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Name of the network.
    pub network: String,
    /// What the runtime said on ADD. A file of old libcni has no more of it than container and interface.
    pub parameters: Parameters,
    /// The network's list as it was then; empty in a file of old libcni.
    pub config: Vec<u8>,
    /// The result of the last plugin, in its own version.
    pub result: Map<String, Value>,
}

/// An [`Entry`] as libcni writes it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    container_id: String,
    #[serde(default)]
    config: String,
    #[serde(default)]
    if_name: String,
    #[serde(default)]
    network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    netns: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cni_args: Vec<[String; 2]>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    capability_args: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    result: Map<String, Value>,
}

impl ResultCache {
    /// The cache below a directory, normally [`DIRECTORY`]; it need not be there yet.
    pub fn new(directory: &Path) -> Self {
        Self { results: directory.join("results") }
    }

    /// What is kept of an attachment; an error of code 105 if its file cannot be read or understood.
    pub fn load(&self, attachment: &Attachment) -> Result<Option<Entry>, CniError> {
        let file = self.file(attachment)?;
        let bytes = match bounded_read(&file, MAX_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&file, error)),
        };
        match serde_json::from_slice(&bytes).map_err(|e| failed(&file, e))? {
            Value::Object(object) if object.get("kind").is_some_and(|kind| kind == KIND) => {
                Entry::decode(&object).map(Some).map_err(|why| failed(&file, why))
            }
            // Before libcni 0.8 the file was the result and nothing else.
            Value::Object(result) => Ok(Some(Entry {
                network: attachment.network.clone(),
                parameters: Parameters {
                    container_id: attachment.container_id.clone(),
                    ifname: attachment.ifname.clone(),
                    ..Parameters::default()
                },
                config: Vec::new(),
                result,
            })),
            _ => Err(failed(&file, "it is not a JSON object")),
        }
    }

    /// Keeps an entry, in place of the one that there may be. A reader sees the old or the new one, never a part, and
    /// so does whoever comes after a crash.
    pub fn store(&self, entry: &Entry) -> Result<(), CniError> {
        let file = self.file(&entry.parameters.attachment(&entry.network))?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.results)
            .map_err(|e| failed(&self.results, e))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let aside = self.results.join(format!(".{name}.{}", std::process::id()));
        let bytes = serde_json::to_vec(&entry.encode()).map_err(|e| failed(&file, e))?;
        let written = write_durably(&aside, &bytes).and_then(|()| std::fs::rename(&aside, &file));
        written.map_err(|error| {
            // Nothing is lost if it stays: nobody reads it.
            let _ = std::fs::remove_file(&aside);
            failed(&file, error)
        })
    }

    /// Forgets an attachment; it is no error if nothing is known of it.
    pub fn remove(&self, attachment: &Attachment) -> Result<(), CniError> {
        let file = self.file(attachment)?;
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(&file, error)),
            _ => Ok(()),
        }
    }

    /// All attachments to a network, in the order of their files' names.
    ///
    /// Files that cannot be read or understood are passed over: their name does not tell where the network's name
    /// ends and the container's begins, so it cannot be said whose they are.
    pub fn attachments(&self, network: &str) -> Result<Vec<Entry>, CniError> {
        let directory = match std::fs::read_dir(&self.results) {
            Ok(directory) => directory,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(&self.results, error)),
        };
        let prefix = format!("{network}-");
        let mut files: Vec<PathBuf> = directory
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path())
            .collect();
        files.sort();
        Ok(files
            .iter()
            .filter_map(|file| {
                serde_json::from_slice::<Map<String, Value>>(&bounded_read(file, MAX_BYTES).ok()?).ok()
            })
            .filter(|object| object.get("kind").is_some_and(|kind| kind == KIND))
            .filter_map(|object| Entry::decode(&object).ok())
            .filter(|entry| entry.network == network && entry.parameters.check().is_ok())
            .collect())
    }

    /// The file of an attachment; an error of code 4 or 7 for names that could lead out of the directory.
    fn file(&self, attachment: &Attachment) -> Result<PathBuf, CniError> {
        let Attachment { network, container_id, ifname } = attachment;
        crate::spec::names::check_identifier(network)
            .map_err(|why| CniError::config(format!("the network name {network:?} {why}")))?;
        Parameters { container_id: container_id.clone(), ifname: ifname.clone(), ..Parameters::default() }
            .check()?;
        Ok(self.results.join(format!("{network}-{container_id}-{ifname}")))
    }
}

impl Entry {
    fn encode(&self) -> Document {
        Document {
            kind: KIND.to_owned(),
            container_id: self.parameters.container_id.clone(),
            config: base64::encode(&self.config),
            if_name: self.parameters.ifname.clone(),
            network_name: self.network.clone(),
            netns: self.parameters.netns.clone(),
            cni_args: self.parameters.args.clone(),
            capability_args: self.parameters.capability_args.clone(),
            result: self.result.clone(),
        }
    }

    fn decode(object: &Map<String, Value>) -> Result<Self, String> {
        let mut document: Document = json::decode_object(object).map_err(|e| e.to_string())?;
        if document.netns.is_empty() {
            // libcni keeps it since 1.2, but the result has it.
            document.netns = sandbox_of(&document.result, &document.if_name).unwrap_or_default().to_owned();
        }
        Ok(Self {
            network: document.network_name,
            parameters: Parameters {
                container_id: document.container_id,
                ifname: document.if_name,
                netns: document.netns,
                args: document.cni_args,
                capability_args: document.capability_args,
            },
            config: base64::decode(&document.config).ok_or("config: it is not base64")?,
            result: document.result,
        })
    }
}

/// The namespace that a result has for an interface.
fn sandbox_of<'r>(result: &'r Map<String, Value>, ifname: &str) -> Option<&'r str> {
    let interfaces = result.get("interfaces")?.as_array()?;
    let own = interfaces.iter().filter(|it| it.get("name").is_some_and(|name| name == ifname));
    own.filter_map(|it| it.get("sandbox")?.as_str()).find(|sandbox| !sandbox.is_empty())
}

fn write_durably(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?;
    file.write_all(bytes)?;
    file.sync_data()
}

fn failed(file: &Path, why: impl std::fmt::Display) -> CniError {
    CniError::new(Code::State, format!("result cache: {}: {why}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;
    use crate::runtime::scratch::Scratch;

    fn entry(network: &str, container_id: &str) -> Entry {
        let Value::Object(result) = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/16"}]})
        else {
            panic!("an object was written")
        };
        let mut capability_args = Map::new();
        capability_args.insert("mac".into(), json!("02:00:00:00:00:01"));
        Entry {
            network: network.into(),
            parameters: Parameters {
                container_id: container_id.into(),
                ifname: "eth0".into(),
                netns: "/run/netns/c".into(),
                args: vec![["IgnoreUnknown".into(), "1".into()]],
                capability_args,
            },
            config: b"{}\n".to_vec(),
            result,
        }
    }

    fn attachment(network: &str, container_id: &str) -> Attachment {
        entry(network, container_id).parameters.attachment(network)
    }

    #[test]
    fn an_entry_is_written_as_libcni_writes_it() {
        let scratch = Scratch::new();
        let cache = ResultCache::new(scratch.path());
        cache.store(&entry("n", "c")).unwrap();
        let file = scratch.path().join("results/n-c-eth0");
        let value: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(
            value,
            json!({
                "kind": "cniCacheV1", "containerId": "c", "config": "e30K", "ifName": "eth0", "networkName": "n",
                "netns": "/run/netns/c", "cniArgs": [["IgnoreUnknown", "1"]],
                "capabilityArgs": {"mac": "02:00:00:00:00:01"},
                "result": {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/16"}]},
            })
        );
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let results = scratch.path().join("results");
        assert_eq!(results.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::read_dir(results).unwrap().count(), 1);
    }

    #[test]
    fn an_entry_is_read_back_replaced_and_forgotten() {
        let scratch = Scratch::new();
        let cache = ResultCache::new(scratch.path());
        let key = attachment("n", "c");
        assert_eq!(cache.load(&key).unwrap(), None);
        cache.store(&entry("n", "c")).unwrap();
        let mut changed = entry("n", "c");
        changed.parameters.args.clear();
        cache.store(&changed).unwrap();
        assert_eq!(cache.load(&key).unwrap(), Some(changed));
        cache.remove(&key).unwrap();
        cache.remove(&key).unwrap();
        assert_eq!(cache.load(&key).unwrap(), None);
    }

    /// As containerd 1.6 and podman 4 have it.
    #[test]
    fn an_entry_without_a_namespace_has_that_of_its_result() {
        let scratch = Scratch::new();
        let interfaces = |sandbox: &str| {
            json!({"kind": "cniCacheV1", "containerId": "c", "ifName": "eth0", "networkName": "n", "config": "e30K",
            "result": {"cniVersion": "0.4.0", "interfaces": [
                {"name": "eth0"}, {"name": "veth0"}, {"name": "eth0", "sandbox": sandbox},
                {"name": "eth1", "sandbox": "/run/netns/other"},
            ]}})
        };
        let cache = ResultCache::new(scratch.path());
        for (sandbox, netns) in [("/run/netns/c", "/run/netns/c"), ("", "")] {
            scratch.file("results/n-c-eth0", &interfaces(sandbox).to_string());
            assert_eq!(cache.load(&attachment("n", "c")).unwrap().unwrap().parameters.netns, netns);
            assert_eq!(cache.attachments("n").unwrap()[0].parameters.netns, netns);
        }
    }

    #[test]
    fn a_bare_result_is_an_entry_too() {
        let scratch = Scratch::new();
        scratch.file("results/n-c-eth0", r#"{"cniVersion":"0.4.0","dns":{}}"#);
        let cache = ResultCache::new(scratch.path());
        let entry = cache.load(&attachment("n", "c")).unwrap().unwrap();
        assert_eq!((entry.result["cniVersion"].as_str(), entry.config.len()), (Some("0.4.0"), 0));
        assert!(cache.attachments("n").unwrap().is_empty());
    }

    #[test]
    fn null_is_as_good_as_nothing() {
        let scratch = Scratch::new();
        let text = r#"{"kind":"cniCacheV1","containerId":"c","config":null,"ifName":"eth0","networkName":"n",
            "cniArgs":null,"capabilityArgs":null,"result":{}}"#;
        scratch.file("results/n-c-eth0", text);
        let entry = ResultCache::new(scratch.path()).load(&attachment("n", "c")).unwrap().unwrap();
        assert_eq!((entry.config.len(), entry.parameters.args.len()), (0, 0));
    }

    #[test]
    fn a_broken_file_is_an_error_with_its_name() {
        let scratch = Scratch::new();
        let cache = ResultCache::new(scratch.path());
        for text in ["", "[]", r#"{"kind":"cniCacheV1","config":"*"}"#] {
            let file = scratch.file("results/n-c-eth0", text);
            let error = cache.load(&attachment("n", "c")).unwrap_err();
            assert_eq!(error.code, 105);
            assert!(error.msg.contains(&file.display().to_string()), "{error}");
            assert!(cache.attachments("n").unwrap().is_empty());
        }
    }

    #[test]
    fn only_the_networks_own_attachments_are_listed() {
        let scratch = Scratch::new();
        let cache = ResultCache::new(scratch.path());
        assert!(cache.attachments("n").unwrap().is_empty());
        for (network, container_id) in [("n", "c2"), ("n", "c1"), ("n-c", "1"), ("m", "c1")] {
            cache.store(&entry(network, container_id)).unwrap();
        }
        scratch.file("results/.n-c3-eth0.1", "{");
        assert_eq!(cache.attachments("n").unwrap(), [entry("n", "c1"), entry("n", "c2")]);
    }

    #[test]
    fn no_name_leads_out_of_the_directory() {
        let scratch = Scratch::new();
        let cache = ResultCache::new(scratch.path());
        for (network, container_id) in [("../n", "c"), ("n", "../c"), ("n", "")] {
            assert!(cache.load(&attachment(network, container_id)).is_err());
            assert!(cache.remove(&attachment(network, container_id)).is_err());
            assert!(cache.store(&entry(network, container_id)).is_err());
        }
    }
}
