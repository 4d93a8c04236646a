//! Holds the arrows of the house: which module may import which. A new arrow is a decision, made here.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each module and those that it may use. `spec` and `net` know nobody; nobody is known by `tool`.
const ARROWS: [(&str, &[&str]); 15] = [
    ("spec", &[]),
    ("net", &[]),
    ("logger", &[]),
    ("private_file", &[]),
    ("ipam", &["spec"]),
    ("runtime", &["spec"]),
    ("dhcp", &["net", "private_file", "spec"]),
    ("resource", &["net", "private_file", "dhcp", "ipam", "runtime", "spec"]),
    ("plan", &["resource", "net", "private_file", "spec"]),
    ("plugins", &["plan", "resource", "net", "dhcp", "ipam", "spec"]),
    ("registry", &["plugins"]),
    ("dispatch", &["registry", "plugins", "plan", "resource", "spec"]),
    ("netavark", &["registry", "dispatch", "net", "spec"]),
    ("tool", &["registry", "dispatch", "runtime", "plan", "resource", "ipam", "net", "spec"]),
    ("lib", &[]),
];

#[test]
fn modules_import_only_what_is_below_them() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ARROWS.iter().map(|(module, below)| (*module, below.iter().copied().collect())).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for file in rust_files(&root) {
        let inside = file.strip_prefix(&root).unwrap();
        let module =
            inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        if module == "main" {
            continue;
        }
        let Some(below) = allowed.get(module) else {
            panic!("module {module} is not in the table of arrows");
        };
        seen.insert(module.to_owned());
        for (number, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
            for used in imports(line) {
                if used != module && !below.contains(used.as_str()) {
                    wrong.push(format!("{}:{}: {module} -> {used}", inside.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that the house does not have:\n{}", wrong.join("\n"));
    let missing: Vec<&&str> = allowed.keys().filter(|module| !seen.contains(**module)).collect();
    assert!(missing.is_empty(), "modules of the table that are not there: {missing:?}");
}

#[test]
fn the_table_has_no_circle() {
    // The table is in the order of the house, so every arrow must lead to an earlier line.
    for (i, (module, below)) in ARROWS.iter().enumerate() {
        for used in *below {
            let position = ARROWS.iter().position(|(other, _)| other == used).unwrap();
            assert!(position < i, "{module} -> {used} leads up");
        }
    }
}

/// What is longer is about more than one thing.
const LINES_MAX: usize = 500;

#[test]
fn no_file_is_long() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let parts =
        ["src", "tests", "conformance/src", "fuzz/fuzz_targets"].map(|part| rust_files(&root.join(part)));
    let long: Vec<String> = parts
        .iter()
        .flatten()
        .map(|file| (file, fs::read_to_string(file).unwrap().lines().count()))
        .filter(|(_, lines)| *lines >= LINES_MAX)
        .map(|(file, lines)| format!("{} ({lines})", file.display()))
        .collect();
    assert!(long.is_empty(), "files of {LINES_MAX} lines or more:\n{}", long.join("\n"));
}

#[test]
fn the_judge_links_nothing_of_what_it_judges() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/Cargo.toml");
    assert!(!fs::read_to_string(manifest).unwrap().contains("bridgehead ="));
}

/// The modules that a line names by `crate::`; comments do not count.
fn imports(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    code.match_indices("crate::")
        .map(|(at, token)| {
            let rest = &code[at + token.len()..];
            rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>()
        })
        .filter(|name| !name.is_empty())
        .collect()
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}
