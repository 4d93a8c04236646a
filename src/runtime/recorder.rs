//! Plugins that write down how they were called, for tests of what calls plugins.

use std::path::PathBuf;

use serde_json::Value;

use super::scratch::Scratch;

/// A directory with a network configuration, plugins, and what they wrote down.
pub(crate) struct Recorder {
    pub(crate) scratch: Scratch,
}

impl Recorder {
    /// Plugins of these types; their ADD answers with a result of version 1.1.0 that has their type as DNS domain.
    pub(crate) fn new(types: &[&str]) -> Self {
        let scratch = Scratch::new();
        scratch.dir("fail");
        let root = scratch.path().display().to_string();
        for plugin_type in types {
            scratch.program(
                &format!("bin/{plugin_type}"),
                &format!(
                    r#"
config=$(cat)
printf '{{"call":"{plugin_type} %s","id":"%s","netns":"%s","ifname":"%s","args":"%s","path":"%s","config":%s}}\n' \
    "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_NETNS" "$CNI_IFNAME" "$CNI_ARGS" "$CNI_PATH" "$config" >> {root}/log
if [ -e {root}/fail/{plugin_type}-$CNI_COMMAND ]; then
    echo '{{"code":123,"msg":"{plugin_type} will not","details":"told so"}}'
    exit 1
fi
case $CNI_COMMAND in
ADD) echo '{{"cniVersion":"1.1.0","dns":{{"domain":"{plugin_type}"}},"ips":[{{"address":"10.1.0.2/16"}}]}}' ;;
VERSION) echo '{{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}}' ;;
esac"#
                ),
            );
        }
        Self { scratch }
    }

    /// Writes a list named `net` of these plugins' objects, with keys of the list before them.
    pub(crate) fn network(&self, keys: &str, plugins: &str) {
        let text = format!(r#"{{"name":"net",{keys}"plugins":[{plugins}]}}"#);
        self.scratch.file("net.d/net.conflist", &text);
    }

    /// From now on, this plugin fails on this verb.
    pub(crate) fn fail(&self, plugin_type: &str, command: &str) {
        self.scratch.file(&format!("fail/{plugin_type}-{command}"), "");
    }

    /// The directory of the plugins.
    pub(crate) fn bin(&self) -> PathBuf {
        self.scratch.path().join("bin")
    }

    /// The directory of the network configuration.
    pub(crate) fn net_dir(&self) -> PathBuf {
        self.scratch.path().join("net.d")
    }

    /// The calls since the last look.
    pub(crate) fn calls(&self) -> Vec<Value> {
        let log = self.scratch.path().join("log");
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let _ = std::fs::remove_file(&log);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Plugin and verb of the calls since the last look.
    pub(crate) fn verbs(&self) -> Vec<String> {
        self.calls().iter().map(|call| call["call"].as_str().unwrap().to_owned()).collect()
    }
}
