//! A file of the network configuration directory, as a list and as a single configuration, and a file of the result
//! cache. Whatever it holds, it is read or refused.

#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bridgehead::runtime::{NetworkList, Parameters, ResultCache};
use bridgehead::spec::Attachment;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// A directory of this process.
static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
    let root = std::env::temp_dir().join(format!("conflist-{}", std::process::id()));
    std::fs::create_dir_all(root.join("results")).expect("a directory for the files");
    root
});

fuzz_target!(|data: &[u8]| {
    let json: Value = serde_json::from_slice(data).unwrap_or_default();
    let name = json["name"].as_str().unwrap_or("n");
    for file in ["a.conflist", "a.conf"] {
        let file = ROOT.join(file);
        std::fs::write(&file, data).expect("a file");
        load(name);
        std::fs::remove_file(&file).expect("the file");
    }
    keep(data);
});

fn load(name: &str) {
    match NetworkList::load(&ROOT, name) {
        Ok(found) => {
            assert_eq!(found.list.name, name);
            assert!(!found.list.plugins.is_empty());
            // It is kept as a list, whatever it was.
            let kept: Value = serde_json::from_slice(&found.list.document).expect("JSON");
            assert!(kept.is_object());
        }
        Err(error) => assert!([1, 5, 6, 7].contains(&error.code) && !error.msg.is_empty(), "{error}"),
    }
}

fn keep(data: &[u8]) {
    let attachment = Attachment { network: "n".into(), container_id: "c".into(), ifname: "eth0".into() };
    let file: &Path = &ROOT.join("results/n-c-eth0");
    std::fs::write(file, data).expect("a file");
    let cache = ResultCache::new(&ROOT);
    let listed = cache.attachments("n").expect("a list");
    match cache.load(&attachment) {
        Ok(Some(entry)) => {
            let _ = Parameters::parse_args(&entry.parameters.args_text());
            if entry.parameters.check().is_ok() && cache.store(&entry).is_ok() {
                let again = cache.load(&entry.parameters.attachment(&entry.network)).expect("what was kept");
                assert_eq!(again, Some(entry.clone()));
                cache.remove(&entry.parameters.attachment(&entry.network)).expect("the file");
            }
        }
        Ok(None) => unreachable!("the file is there"),
        Err(error) => assert!(error.code == 105 && listed.is_empty(), "{error}"),
    }
    let _ = std::fs::remove_file(file);
}
