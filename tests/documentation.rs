//! Holds what is written beside the code to the code: the pages of the plugins, and the lists of their names.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use bridgehead::netavark;
use bridgehead::plugins::PluginType;
use bridgehead::registry::{PLUGINS, TOOL};

/// Keys that a page may have without the plugin's own configuration having them: all plugins read them alike.
const SHARED: [&str; 3] = ["delegateTimeout", "ipam", "lockTimeout"];

#[test]
fn each_page_has_the_keys_of_its_plugin() {
    let mut wrong = Vec::new();
    for plugin in PLUGINS {
        let known: BTreeSet<&str> =
            (plugin.keys)().iter().copied().filter(|key| !is_shared_by_all(key)).collect();
        let page = page(plugin);
        let written: BTreeSet<&str> = keys_of(&page, "Keys").collect();
        for key in known.difference(&written) {
            wrong.push(format!("docs/{}.md: no line for the key {key:?}", plugin.name));
        }
        for key in written.difference(&known).filter(|key| !SHARED.contains(key)) {
            wrong.push(format!("docs/{}.md: the plugin has no key {key:?}", plugin.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_page_of_each_plugin_with_an_ipam_has_how_long_it_waits() {
    for plugin in PLUGINS {
        let page = page(plugin);
        let written: BTreeSet<&str> = keys_of(&page, "Keys").collect();
        if written.contains("ipam") {
            for key in SHARED {
                assert!(written.contains(key), "docs/{}.md: no line for the key {key:?}", plugin.name);
            }
        }
    }
}

#[test]
fn the_page_of_podman_has_the_options_of_networks() {
    let page = text("docs/netavark.md");
    let written: BTreeSet<&str> = keys_of(&page, "Options").collect();
    assert_eq!(written, netavark::options::NAMES.into_iter().collect());
    assert!(text("README.md").contains("(docs/netavark.md)"));
}

#[test]
fn each_plugin_is_in_the_readme_and_in_an_example() {
    let readme = text("README.md");
    let examples: String = fs::read_dir(root().join("test-configs"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    for PluginType { name, .. } in PLUGINS {
        assert!(readme.contains(&format!("(docs/{name}.md)")), "README.md has no link to docs/{name}.md");
        let quoted = [format!("\"type\": \"{name}\""), format!("\"type\":\"{name}\"")];
        assert!(quoted.iter().any(|it| examples.contains(it)), "no example in test-configs has {name}");
    }
}

#[test]
fn each_plugin_is_installed() {
    let makefile = text("Makefile");
    let names = makefile.split("\nPLUGINS :=").nth(1).unwrap().replace("\\\n", " ");
    let installed: BTreeSet<&str> = names.lines().next().unwrap().split_whitespace().collect();
    // The file itself has the name of one of them.
    let known: BTreeSet<&str> =
        PLUGINS.iter().map(|plugin| plugin.name).filter(|name| *name != TOOL).collect();
    assert_eq!(installed, known, "PLUGINS of the Makefile and of src/registry.rs");
}

/// Keys that a configuration has for those who are asked through it, not for the plugin.
fn is_shared_by_all(key: &str) -> bool {
    ["cniVersion", "name", "type", "prevResult", "runtimeConfig", "args", "capabilities"].contains(&key)
}

/// The keys in the first column of the table below a heading; one line may have several.
fn keys_of<'a>(page: &'a str, heading: &str) -> impl Iterator<Item = &'a str> {
    let section = page.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_default();
    let table =
        section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    table.filter_map(|line| line.split('|').nth(1)).flat_map(|cell| cell.split('`').skip(1).step_by(2))
}

fn page(plugin: &PluginType) -> String {
    text(&format!("docs/{}.md", plugin.name))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
