//! What is kept of where rules are in the chain of all pods, and is not believed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::{Walled, filter, nothing_of_pods};
use crate::cases::networks::gateway46;
use crate::expect::{contains, equal, holds, lacks};
use crate::sandbox::Sandbox;

const DIRECTORY: &str = "/run/bridgehead/admitted";

fn files() -> Result<Vec<std::path::PathBuf>> {
    let entries = fs::read_dir(DIRECTORY)?;
    Ok(entries.map(|entry| entry.map(|it| it.path())).collect::<std::io::Result<_>>()?)
}

fn write_each(text: &str) -> Result<()> {
    files()?.iter().try_for_each(|path| Ok(fs::write(path, text)?))
}

type Damage = fn() -> Result<()>;

pub(super) fn damaged_places_are_not_believed(host: &Sandbox) -> Result<()> {
    let kept = Walled::new(host, "kept", gateway46(), json!({}))?;
    let damages: [(&str, Damage); 5] = [
        ("they are gone", || Ok(fs::remove_dir_all(DIRECTORY)?)),
        ("they are empty", || write_each("")),
        ("they are no text", || write_each("\u{7f}\n")),
        ("they name what is not there", || write_each("999999.\n")),
        ("they are another's", || {
            let files = files()?;
            let texts: Vec<Vec<u8>> = files.iter().map(fs::read).collect::<std::io::Result<_>>()?;
            files
                .iter()
                .zip(texts.iter().cycle().skip(1))
                .try_for_each(|(path, text)| Ok(fs::write(path, text)?))
        }),
    ];
    for (number, (what, damage)) in damages.into_iter().enumerate() {
        let one = Walled::new(host, &format!("a{number}"), gateway46(), json!({}))?;
        damage()?;
        one.check(host).context(what)?;
        let two = Walled::new(host, &format!("b{number}"), gateway46(), json!({})).context(what)?;
        one.del(host).context(what)?;
        let rules = filter(host, "iptables")?.join("\n");
        lacks(what, &rules, &format!("{}/", one.base.address()?))?;
        contains(what, &rules, &format!("{}/", two.base.address()?))?;
        two.check(host).context(what)?;
        two.del(host).context(what)?;
        kept.check(host).context(what)?;
    }
    kept.del(host)?;
    nothing_of_pods(host)
}

pub(super) fn rules_that_were_saved_and_restored_are_found(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway46(), json!({}))?;
    for program in ["iptables", "ip6tables"] {
        let saved = host.run(&[&format!("{program}-save")])?;
        let restored = host.run_with_input(&[&format!("{program}-restore")], saved.as_bytes())?;
        holds(restored.status.success(), format!("{program}-restore"))?;
    }
    one.check(host)?;
    let two = Walled::new(host, "b", gateway46(), json!({}))?;
    one.del(host)?;
    two.check(host)?;
    let three = Walled::new(host, "c", gateway46(), json!({}))?;
    for pod in [two, three] {
        pod.check(host)?;
        pod.del(host)?;
    }
    nothing_of_pods(host)
}

pub(super) fn nothing_is_kept_of_the_dead(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway46(), json!({}))?;
    let shared = |path: &&std::path::PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.contains('_'))
    };
    equal("files of a pod with two addresses", files()?.iter().filter(|it| !shared(it)).count(), 2)?;
    one.del(host)?;
    equal("files of none", files()?.iter().filter(|it| !shared(it)).count(), 0)?;
    holds(Path::new(DIRECTORY).is_dir(), "the directory is gone")
}
