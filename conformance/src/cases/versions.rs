//! Versions of the protocol: which verbs and configurations each has, and what a plugin says of itself.

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::cases;
use super::environment::any;
use super::networks::{PLUGINS, VERSIONS, host_local};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, list_at, text_at};
use crate::sandbox::Sandbox;

cases! {
    "spec/versions" {
        incompatible_versions_are_refused;
        check_needs_0_4_0;
        gc_and_status_need_1_1_0;
        a_missing_version_means_the_oldest;
        version_lists_all_seven;
        version_needs_no_other_variable;
        version_does_not_read_stdin;
        a_bare_call_introduces_the_plugin;
        a_bare_call_needs_no_reader needs [Need::Plugin("bridgehead")];
        an_answer_that_cannot_be_written_is_a_failure;
    }
}

fn incompatible_versions_are_refused(host: &Sandbox) -> Result<()> {
    for plugin in PLUGINS {
        for version in ["2.0.0", "1.2.0", "0.9.9", "1.0", "v1.0.0", "1.0.0 ", "abc"] {
            for command in ["ADD", "DEL"] {
                let answer = any(plugin).command(command).set("cniVersion", json!(version)).run(host)?;
                let refusal =
                    answer.refused_with(1).with_context(|| format!("{plugin} with version {version:?}"))?;
                contains("the error names the version", &refusal.text(), version)?;
            }
        }
    }
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn check_needs_0_4_0(host: &Sandbox) -> Result<()> {
    for plugin in PLUGINS {
        for version in &VERSIONS[..4] {
            let answer = any(plugin).check().set("cniVersion", json!(version)).run(host)?;
            answer.refused_with(1).with_context(|| format!("{plugin} CHECK in {version}"))?;
        }
    }
    Ok(())
}

fn gc_and_status_need_1_1_0(host: &Sandbox) -> Result<()> {
    for plugin in PLUGINS {
        for version in &VERSIONS[..6] {
            for call in [any(plugin).gc(), any(plugin).status()] {
                let answer = call.set("cniVersion", json!(version)).run(host)?;
                answer.refused_with(1).with_context(|| format!("{plugin} in {version}"))?;
            }
        }
    }
    Ok(())
}

fn a_missing_version_means_the_oldest(host: &Sandbox) -> Result<()> {
    let call = host_local("c1", json!({})).add();
    let call = call.stdin(br#"{"name":"net","ipam":{"type":"host-local","subnet":"10.1.0.0/24"}}"#);
    let result = call.run(host)?.result()?;
    equal("address in the shape of 0.1.0", text_at(&result, "/ip4/ip")?, "10.1.0.2/24")
}

fn version_lists_all_seven(host: &Sandbox) -> Result<()> {
    for plugin in PLUGINS {
        let result =
            Call::new(plugin).command("VERSION").stdin(br#"{"cniVersion":"1.0.0"}"#).run(host)?.result()?;
        let supported = list_at(&result, "/supportedVersions").context(plugin)?;
        for version in VERSIONS {
            holds(
                supported.contains(&json!(version)),
                format!("{plugin} does not support {version}: {result}"),
            )?;
        }
        let own = text_at(&result, "/cniVersion").context(plugin)?;
        holds(VERSIONS.contains(&own), format!("{plugin} answers in an unknown version: {result}"))?;
    }
    Ok(())
}

fn version_needs_no_other_variable(host: &Sandbox) -> Result<()> {
    for plugin in PLUGINS {
        let call = Call::new(plugin).command("VERSION").without_path();
        call.run(host)?.result().with_context(|| format!("{plugin}, no CNI_PATH, nothing on stdin"))?;
        // podman asks like this.
        let call = call.env("CNI_NETNS", "dummy").ifname("dummy").env("CNI_PATH", "dummy");
        call.run(host)?.result().with_context(|| format!("{plugin}, as podman asks"))?;
    }
    Ok(())
}

fn version_does_not_read_stdin(host: &Sandbox) -> Result<()> {
    host.run(&["mkfifo", "/run/scratch/never"])?;
    for plugin in PLUGINS {
        Call::new(plugin).command("VERSION").stdin(b"garbage").run(host)?.result().context(plugin)?;
        // A pipe that stays open and empty.
        let script = r#"CNI_COMMAND=VERSION exec timeout 5 "$0" <>/run/scratch/never"#;
        let path = host.plugins().join(plugin);
        host.run(&["sh", "-c", script, &path.to_string_lossy()])
            .with_context(|| format!("{plugin} waits for stdin"))?;
    }
    Ok(())
}

fn a_bare_call_needs_no_reader(host: &Sandbox) -> Result<()> {
    for plugin in PLUGINS {
        let program = host.plugins().join(plugin);
        // The pipe has lost its reader when the plugin begins to write.
        let script = format!(
            "mkfifo /run/scratch/{plugin}; cat </run/scratch/{plugin} >/dev/null & exec 3>/run/scratch/{plugin}; \
             kill $!; wait $! 2>/dev/null; {} 2>&3",
            program.display()
        );
        host.run(&["sh", "-c", &script]).with_context(|| plugin.to_owned())?;
    }
    Ok(())
}

fn a_bare_call_introduces_the_plugin(host: &Sandbox) -> Result<()> {
    for plugin in PLUGINS {
        let answer = Call::new(plugin).without_path().run(host)?;
        equal(format!("{plugin}: exit status"), answer.status(), Some(0))?;
        equal(format!("{plugin}: stdout"), answer.stdout(), "")?;
        let said = answer.stderr();
        let line = said.lines().find(|line| line.starts_with(&format!("CNI {plugin} plugin v")));
        let Some(line) = line else {
            bail!("{plugin}: wanted `CNI {plugin} plugin v<version>`, found {said:?}")
        };
        let rest = line.rsplit(" plugin v").next().unwrap_or_default();
        let version = rest.split_whitespace().next().unwrap_or_default();
        let numbers = version.split(['-', '+']).next().unwrap_or_default().split('.');
        holds(
            numbers.clone().count() == 3 && numbers.clone().all(|number| number.parse::<u32>().is_ok()),
            format!("{plugin}: {version:?} is not a semantic version"),
        )?;
        for version in VERSIONS {
            contains(format!("{plugin}: the supported versions"), said, version)?;
        }
    }
    Ok(())
}

fn an_answer_that_cannot_be_written_is_a_failure(host: &Sandbox) -> Result<()> {
    for plugin in PLUGINS {
        let path = host.plugins().join(plugin);
        let script = r#"CNI_COMMAND=VERSION exec "$0" >/dev/full </dev/null"#;
        let finished = host.try_run(&["sh", "-c", script, &path.to_string_lossy()])?;
        match finished.status.code() {
            Some(0) => bail!("{plugin}: success although stdout is full"),
            Some(_) => {}
            None => bail!("{plugin}: {}", finished.outcome()),
        }
    }
    Ok(())
}
