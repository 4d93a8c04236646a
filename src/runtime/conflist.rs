//! Network configuration lists and where they are found (specification section 1; libcni's `conf.go`).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::bounded_read::bounded_read;
use crate::spec::config::MAX_BYTES;
use crate::spec::{CniError, Code, Version, json as go_json, names, version};

/// Where runtimes look for network configurations unless they are told otherwise.
pub const DIRECTORY: &str = "/etc/cni/net.d";

/// A network: its plugins in the order of ADD, and what the runtime is told about them.
#[derive(Clone, Debug)]
pub struct NetworkList {
    /// The file that it is from.
    pub file: PathBuf,
    /// `name`.
    pub name: String,
    /// The version that plugins are called with: the highest that both `cniVersion` or `cniVersions` and this suite
    /// have; without either, 0.1.0.
    pub version: Version,
    /// `disableCheck`: CHECK is to be passed over.
    pub disable_check: bool,
    /// `disableGC`: GC is to be passed over.
    pub disable_gc: bool,
    /// `plugins`, and those of the directory that is named as the network.
    pub plugins: Vec<Plugin>,
    /// The list as text; what is kept in the result cache. For an old single configuration it is the list made of it.
    pub document: Vec<u8>,
}

/// One plugin's object of a list.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// `type`, which is the name of its program.
    pub plugin_type: String,
    /// The names under `capabilities` that are true.
    pub capabilities: Vec<String>,
    /// The object as it stands in the file.
    pub object: Map<String, Value>,
}

/// A network that was looked up by name.
#[derive(Clone, Debug)]
pub struct Found {
    /// The network.
    pub list: NetworkList,
    /// What is wrong with files that come before it and were passed over. libcni gives up at the first of them.
    pub passed_over: Vec<CniError>,
}

impl NetworkList {
    /// The first network of that name: `.conflist` files in the order of their names, then `.conf` and `.json` files,
    /// which hold a single plugin's configuration in the way of before version 1.0.0.
    ///
    /// Errors: code 7 if there is none, naming those that there are; the file's own error if one of that name is
    /// wrong; the error of an unreadable file if the network might have been in it.
    pub fn load(directory: &Path, name: &str) -> Result<Found, CniError> {
        let mut passed_over = Vec::new();
        let mut others = Vec::new();
        for (file, form) in candidates(directory)? {
            let (bytes, map) = match read_object(&file) {
                Ok(read) => read,
                Err(error) => {
                    passed_over.push(error);
                    continue;
                }
            };
            match map.get("name").and_then(Value::as_str) {
                Some(own) if own == name => {
                    let list = match form {
                        Form::List => Self::parse(&file, &bytes, &map),
                        Form::Single => Self::parse_single(&file, map),
                    }?;
                    return Ok(Found { list, passed_over });
                }
                Some(own) => others.push(own.to_owned()),
                // A list without a name may be the one that is looked for.
                None => match form {
                    Form::List => passed_over.extend(name_of(&file, &map).err()),
                    Form::Single => {}
                },
            }
        }
        if let Some(error) = passed_over.into_iter().next() {
            return Err(error);
        }
        let error = CniError::config(format!("no network is named {name:?} in {}", directory.display()));
        Err(if others.is_empty() {
            error.with_details("there is no network configuration at all in this directory")
        } else {
            error.with_details(format!("there are: {}", others.join(", ")))
        })
    }

    /// Reads a `.conflist` file.
    fn parse(file: &Path, bytes: &[u8], map: &Map<String, Value>) -> Result<Self, CniError> {
        let name = name_of(file, map)?;
        let only_inlined = flag(file, map, "loadOnlyInlinedPlugins")?;
        let mut plugins = match map.get("plugins") {
            None if only_inlined => {
                return Err(wrong(file, "plugins", "missing, and loadOnlyInlinedPlugins allows no others"));
            }
            None => Vec::new(),
            Some(Value::Array(list)) if list.is_empty() => {
                return Err(wrong(file, "plugins", "the list is empty"));
            }
            Some(Value::Array(list)) => list
                .iter()
                .enumerate()
                .map(|(index, value)| Plugin::parse(file, &format!("plugins[{index}]."), value))
                .collect::<Result<_, _>>()?,
            Some(_) => return Err(wrong(file, "plugins", "it is not a list")),
        };
        if !only_inlined {
            let directory = file.with_file_name(&name);
            for file in files(&directory, &["conf"])? {
                let (_, map) = read_object(&file)?;
                plugins.push(Plugin::parse(&file, "", &Value::Object(map))?);
            }
            if plugins.is_empty() {
                let msg = format!("missing, and there are no *.conf files in {}", directory.display());
                return Err(wrong(file, "plugins", msg));
            }
        }
        Ok(Self {
            file: file.to_owned(),
            version: negotiate(file, map)?,
            disable_check: flag(file, map, "disableCheck")?,
            disable_gc: flag(file, map, "disableGC")?,
            document: bytes.to_owned(),
            name,
            plugins,
        })
    }

    /// Reads a `.conf` or `.json` file: the list that has it as its only plugin.
    fn parse_single(file: &Path, map: Map<String, Value>) -> Result<Self, CniError> {
        if map.contains_key("plugins") {
            let msg = "this is a list; its file's name must end in .conflist";
            return Err(wrong(file, "plugins", msg));
        }
        let name = name_of(file, &map)?;
        let version = negotiate(file, &map)?;
        let value = Value::Object(map);
        let plugin = Plugin::parse(file, "", &value)?;
        let document = json!({ "name": name, "cniVersion": version.as_str(), "plugins": [value] });
        Ok(Self {
            file: file.to_owned(),
            name,
            version,
            disable_check: false,
            disable_gc: false,
            plugins: vec![plugin],
            document: document.to_string().into_bytes(),
        })
    }
}

impl Plugin {
    fn parse(file: &Path, path: &str, value: &Value) -> Result<Self, CniError> {
        let at = |key: &str| format!("{path}{key}");
        let Value::Object(object) = value else {
            return Err(wrong(file, path.trim_end_matches('.'), "it is not an object"));
        };
        let plugin_type = match go_json::get(object, "type") {
            Some(Value::String(text)) if !text.is_empty() => text.clone(),
            Some(Value::String(_)) | None => {
                return Err(wrong(file, &at("type"), "missing: which plugin is to be executed?"));
            }
            Some(_) => return Err(wrong(file, &at("type"), "it is not a string")),
        };
        let mut capabilities = Vec::new();
        match go_json::get(object, "capabilities") {
            None => {}
            Some(Value::Object(map)) => {
                for (key, value) in map {
                    match value {
                        Value::Bool(true) => capabilities.push(key.clone()),
                        Value::Bool(false) | Value::Null => {}
                        _ => {
                            let key = at(&format!("capabilities.{key}"));
                            return Err(wrong(file, &key, "it is neither true nor false"));
                        }
                    }
                }
            }
            Some(_) => return Err(wrong(file, &at("capabilities"), "it is not an object")),
        }
        Ok(Self { plugin_type, capabilities, object: object.clone() })
    }
}

/// What a file of the directory holds, by its ending.
#[derive(Clone, Copy)]
enum Form {
    List,
    Single,
}

fn candidates(directory: &Path) -> Result<Vec<(PathBuf, Form)>, CniError> {
    let lists = files(directory, &["conflist"])?.into_iter().map(|file| (file, Form::List));
    let singles = files(directory, &["conf", "json"])?.into_iter().map(|file| (file, Form::Single));
    Ok(lists.chain(singles).collect())
}

/// The files with one of these endings, sorted; none if the directory is not there.
fn files(directory: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, CniError> {
    let unreadable = |e: std::io::Error| CniError::new(Code::Io, format!("{}: {e}", directory.display()));
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(unreadable)?;
        let path = entry.path();
        let matches = path.extension().is_some_and(|own| endings.iter().any(|ending| own == *ending));
        if matches && !entry.file_type().map_err(unreadable)?.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_object(file: &Path) -> Result<(Vec<u8>, Map<String, Value>), CniError> {
    let bytes = bounded_read(file, MAX_BYTES).map_err(|e| {
        let code = if e.kind() == ErrorKind::FileTooLarge { Code::Decoding } else { Code::Io };
        CniError::new(code, format!("{}: {e}", file.display()))
    })?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok((bytes, map)),
        Ok(_) => Err(CniError::new(Code::Decoding, format!("{}: it is not a JSON object", file.display()))),
        Err(e) => Err(CniError::new(Code::Decoding, format!("{}: it is not JSON: {e}", file.display()))),
    }
}

fn wrong(file: &Path, key: &str, why: impl std::fmt::Display) -> CniError {
    CniError::config(format!("{}: {key}: {why}", file.display()))
}

fn name_of(file: &Path, map: &Map<String, Value>) -> Result<String, CniError> {
    match map.get("name") {
        Some(Value::String(name)) => match names::check_network(name) {
            Ok(()) => Ok(name.clone()),
            Err(why) => Err(wrong(file, "name", format!("the network name {name:?} {why}"))),
        },
        Some(_) => Err(wrong(file, "name", "it is not a string")),
        None => Err(wrong(file, "name", "missing")),
    }
}

/// A boolean of the list, which may also be written as text.
fn flag(file: &Path, map: &Map<String, Value>, key: &str) -> Result<bool, CniError> {
    match map.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(wrong(file, key, format!("{other} is neither true nor false"))),
    }
}

/// The version to call the plugins with, from `cniVersion` and `cniVersions`.
fn negotiate(file: &Path, map: &Map<String, Value>) -> Result<Version, CniError> {
    let mut wanted = Vec::new();
    match map.get("cniVersion") {
        None => {}
        Some(Value::String(text)) if text.is_empty() => {}
        Some(Value::String(text)) => wanted.push(("cniVersion".to_owned(), text.as_str())),
        Some(_) => return Err(wrong(file, "cniVersion", "it is not a string")),
    }
    match map.get("cniVersions") {
        None => {}
        Some(Value::Array(list)) => {
            for (index, value) in list.iter().enumerate() {
                let key = format!("cniVersions[{index}]");
                match value {
                    Value::String(text) if is_dotted_numbers(text) => wanted.push((key, text)),
                    other => return Err(wrong(file, &key, format!("{other} is not a version"))),
                }
            }
        }
        Some(_) => return Err(wrong(file, "cniVersions", "it is not a list")),
    }
    if wanted.is_empty() {
        return Ok(Version::V0_1_0);
    }
    // Versions unknown here are passed over: they are for newer runtimes.
    wanted.iter().filter_map(|(_, text)| text.parse().ok()).max().ok_or_else(|| {
        let keys: Vec<String> = wanted.iter().map(|(key, text)| format!("{key} {text:?}")).collect();
        let known: Vec<&str> = version::ALL.iter().map(|v| v.as_str()).collect();
        CniError::new(
            Code::IncompatibleVersion,
            format!("{}: {} is none of the versions spoken here", file.display(), keys.join(", ")),
        )
        .with_details(format!("these are {}", known.join(", ")))
    })
}

fn is_dotted_numbers(text: &str) -> bool {
    let mut parts = text.split('.');
    parts.clone().count() <= 3 && parts.all(|part| part.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::scratch::Scratch;

    fn load(scratch: &Scratch, name: &str) -> Result<NetworkList, CniError> {
        NetworkList::load(scratch.path(), name).map(|found| found.list)
    }

    /// The error of a list with these keys beside its name.
    fn error_of(keys: &str) -> String {
        let scratch = Scratch::new();
        scratch.file("a.conflist", &format!(r#"{{"name":"n",{keys}}}"#));
        let error = load(&scratch, "n").unwrap_err();
        error.to_string().replace(&format!("{}/", scratch.path().display()), "")
    }

    const PLUGIN: &str = r#""plugins":[{"type":"x"}]"#;

    #[test]
    fn lists_come_before_single_configurations_and_each_in_order() {
        let scratch = Scratch::new();
        scratch.file("10-a.conf", r#"{"name":"n","type":"single"}"#);
        scratch.file("30-b.conflist", r#"{"name":"n","plugins":[{"type":"later"}]}"#);
        scratch.file("20-c.conflist", r#"{"name":"n","plugins":[{"type":"first"}]}"#);
        scratch.file("00-d.conflist.bak", r#"{"name":"n","plugins":[{"type":"never"}]}"#);
        assert_eq!(load(&scratch, "n").unwrap().plugins[0].plugin_type, "first");
    }

    #[test]
    fn a_single_configuration_becomes_a_list() {
        let scratch = Scratch::new();
        scratch.file("10-a.json", r#"{"name":"n","cniVersion":"0.4.0","type":"bridge","mtu":1400}"#);
        let list = load(&scratch, "n").unwrap();
        assert_eq!((list.version, list.plugins.len()), (Version::V0_4_0, 1));
        assert_eq!(list.plugins[0].object["mtu"], 1400);
        let document: Value = serde_json::from_slice(&list.document).unwrap();
        assert_eq!(document["plugins"][0]["type"], "bridge");
    }

    #[test]
    fn a_network_that_is_not_there_is_told_with_those_that_are() {
        let scratch = Scratch::new();
        let error = load(&scratch, "n").unwrap_err();
        assert!(error.details.contains("no network configuration at all"), "{error}");
        scratch.file("a.conflist", r#"{"name":"other","plugins":[]}"#);
        let error = load(&scratch, "n").unwrap_err();
        assert_eq!((error.code, error.details.as_str()), (7, "there are: other"));
        assert!(NetworkList::load(Path::new("/nowhere"), "n").is_err());
    }

    #[test]
    fn a_list_without_a_name_is_told() {
        let scratch = Scratch::new();
        scratch.file("a.conflist", &format!(r#"{{"NAME":"n",{PLUGIN}}}"#));
        let error = load(&scratch, "n").unwrap_err();
        assert!(error.msg.ends_with("a.conflist: name: missing"), "{error}");
    }

    #[test]
    fn an_unreadable_file_matters_if_the_network_may_have_been_in_it() {
        let scratch = Scratch::new();
        scratch.file("a.conflist", "{");
        let error = load(&scratch, "n").unwrap_err();
        assert_eq!(error.code, 6);
        assert!(error.msg.contains("a.conflist: it is not JSON"), "{error}");
        scratch.file("b.conflist", &format!(r#"{{"name":"n",{PLUGIN}}}"#));
        let found = NetworkList::load(scratch.path(), "n").unwrap();
        assert_eq!(found.passed_over, [error]);
    }

    #[test]
    fn plugins_of_the_networks_directory_follow_the_inlined_ones() {
        let scratch = Scratch::new();
        scratch.file("a.conflist", r#"{"name":"n","plugins":[{"type":"a"}]}"#);
        scratch.file("n/20.conf", r#"{"type":"c"}"#);
        scratch.file("n/10.conf", r#"{"type":"b"}"#);
        let types = |scratch: &Scratch| -> Vec<String> {
            load(scratch, "n").unwrap().plugins.into_iter().map(|p| p.plugin_type).collect()
        };
        assert_eq!(types(&scratch), ["a", "b", "c"]);
        scratch.file("a.conflist", r#"{"name":"n"}"#);
        assert_eq!(types(&scratch), ["b", "c"]);
        scratch
            .file("a.conflist", r#"{"name":"n","plugins":[{"type":"a"}],"loadOnlyInlinedPlugins":"True"}"#);
        assert_eq!(types(&scratch), ["a"]);
        scratch.file("n/20.conf", "{}");
        scratch.file("a.conflist", r#"{"name":"n"}"#);
        let error = load(&scratch, "n").unwrap_err();
        assert!(error.msg.contains("n/20.conf: type: missing"), "{error}");
    }

    #[test]
    fn the_highest_version_that_is_known_is_taken() {
        let version = |keys: &str| {
            let scratch = Scratch::new();
            scratch.file("a.conflist", &format!(r#"{{"name":"n",{keys}{PLUGIN}}}"#));
            load(&scratch, "n").unwrap().version
        };
        assert_eq!(version(""), Version::V0_1_0);
        assert_eq!(version(r#""cniVersion":"","#), Version::V0_1_0);
        assert_eq!(version(r#""cniVersion":"1.0.0","#), Version::V1_0_0);
        assert_eq!(
            version(r#""cniVersion":"0.4.0","cniVersions":["1.1.0","0.3.1","2.0.0"],"#),
            Version::V1_1_0
        );
        assert_eq!(version(r#""cniVersion":"1.0.0","cniVersions":["0.3.1"],"#), Version::V1_0_0);
        assert_eq!(version(r#""cniVersion":"9.0.0","cniVersions":["0.3.1"],"#), Version::V0_3_1);
    }

    #[test]
    fn errors_name_file_and_key() {
        for (keys, text) in [
            (r#""plugins":[]"#, "a.conflist: plugins: the list is empty"),
            (r#""plugins":{}"#, "a.conflist: plugins: it is not a list"),
            (r#""plugins":[1]"#, "a.conflist: plugins[0]: it is not an object"),
            (r#""plugins":[{"type":"a"},{}]"#, "a.conflist: plugins[1].type: missing"),
            (r#""plugins":[{"type":1}]"#, "a.conflist: plugins[0].type: it is not a string"),
            (
                r#""plugins":[{"type":"a","capabilities":{"mac":1}}]"#,
                "plugins[0].capabilities.mac: it is neither true nor false",
            ),
            (r#""disableGC":1,"plugins":[{"type":"a"}]"#, "a.conflist: disableGC: 1 is neither"),
            (r#""loadOnlyInlinedPlugins":true"#, "a.conflist: plugins: missing, and loadOnlyInlinedPlugins"),
            (r#""x":1"#, "a.conflist: plugins: missing, and there are no *.conf files in"),
            (
                r#""cniVersions":["x"],"plugins":[{"type":"a"}]"#,
                r#"a.conflist: cniVersions[0]: "x" is not a"#,
            ),
            (r#""cniVersion":"9.0.0","plugins":[{"type":"a"}]"#, r#"a.conflist: cniVersion "9.0.0" is none"#),
        ] {
            let error = error_of(keys);
            assert!(error.contains(text), "{keys}: {error}");
        }
        let scratch = Scratch::new();
        scratch.file("a.conf", &format!(r#"{{"name":"n",{PLUGIN}}}"#));
        assert!(load(&scratch, "n").unwrap_err().msg.contains("must end in .conflist"));
    }

    #[test]
    fn only_true_capabilities_count() {
        let scratch = Scratch::new();
        let object = r#"{"type":"a","Capabilities":{"mac":true,"ips":false,"x":null}}"#;
        scratch.file("a.conflist", &format!(r#"{{"name":"n","plugins":[{object}]}}"#));
        assert_eq!(load(&scratch, "n").unwrap().plugins[0].capabilities, ["mac"]);
    }
}
