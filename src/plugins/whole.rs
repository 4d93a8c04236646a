//! `bridgehead`: what a chain of `bridge` and the plugins after it does, in one process and as one entry of a list.
//!
//! Each part has its keys out of the one configuration, and goes on with the result of the part before; what they all
//! make is in one record, and is undone as one.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

use super::{PluginType, bandwidth, bridge, firewall, portmap, sbr, tuning};
use crate::plan::{Plan, Plugin};
use crate::resource::{Lease, Resource, World};
use crate::spec::{CniError, CniResult, NetConf, Request, json};

/// The plugin type.
pub const TYPE: PluginType = PluginType {
    name: "bridgehead",
    versions: firewall::TYPE.versions,
    keys: || &KEYS,
    parse,
    leftovers,
    lease: bridge::TYPE.lease,
    status,
};

/// The keys that no part has.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Conf {
    firewall: bool,
}

/// The keys of all parts, and its own.
static KEYS: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
    let parts = PARTS.iter().flat_map(|part| part.keys());
    let own = json::keys_of::<Conf>().iter().chain((bridge::TYPE.keys)()).copied();
    own.chain(parts).collect::<BTreeSet<_>>().into_iter().collect()
});

/// A plugin that may follow the bridge.
struct Part {
    plugin: &'static PluginType,
    /// Keys that another part has too, which has them here.
    lost: &'static [&'static str],
    /// Whether it is asked for.
    is_wanted: fn(&Part, &NetConf) -> bool,
}

/// What follows the bridge, in this order.
const PARTS: [Part; 5] = [
    Part {
        plugin: &portmap::TYPE,
        lost: &[],
        is_wanted: |part, config| {
            is_asked_for("portMappings", config) || part.has_keys_but("backend", config)
        },
    },
    Part {
        plugin: &firewall::TYPE,
        lost: &[],
        is_wanted: |part, config| is_walled(config) || part.has_keys_but("backend", config),
    },
    Part {
        plugin: &bandwidth::TYPE,
        lost: &[],
        is_wanted: |part, config| part.has_keys(config) || is_asked_for("bandwidth", config),
    },
    // MAC address and MTU are the bridge's, which makes the interface with them.
    Part { plugin: &tuning::TYPE, lost: &["mac", "mtu"], is_wanted: Part::has_keys },
    Part { plugin: &sbr::TYPE, lost: &[], is_wanted: Part::has_keys },
];

impl Part {
    fn keys(&self) -> Vec<&'static str> {
        (self.plugin.keys)().iter().copied().filter(|key| !self.lost.contains(key)).collect()
    }

    /// A back end alone asks for nothing.
    fn has_keys_but(&self, but: &str, config: &NetConf) -> bool {
        let keys: Vec<&str> = self.keys().into_iter().filter(|key| *key != but).collect();
        config.has_any(&keys)
    }

    fn has_keys(&self, config: &NetConf) -> bool {
        config.has_any(&self.keys())
    }

    fn request(&self, whole: &Request, prev: Option<&CniResult>) -> Result<Request, CniError> {
        let mut keys = self.keys();
        // This one has no ports to map, and is the firewall's alone.
        let is_firewalld = whole.config.get("backend").and_then(Value::as_str) == Some("firewalld");
        if is_firewalld && self.plugin.name != firewall::TYPE.name {
            keys.retain(|key| *key != "backend");
        }
        whole.part(&keys, prev)
    }
}

/// Whether the runtime asks for something by a capability.
fn is_asked_for(capability: &str, config: &NetConf) -> bool {
    let runtime = config.get("runtimeConfig").and_then(Value::as_object);
    match runtime.and_then(|runtime| json::get(runtime, capability)) {
        None => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(_) => true,
    }
}

/// Whether the firewall is asked for by name.
fn is_walled(config: &NetConf) -> bool {
    config.decode::<Conf>().is_ok_and(|conf| conf.firewall)
}

/// The parts that a configuration asks for, from one of them on.
fn wanted(config: &NetConf, from: usize) -> impl Iterator<Item = (usize, &'static Part)> {
    PARTS.iter().enumerate().skip(from).filter(|(_, part)| (part.is_wanted)(part, config))
}

/// One part, and what is to follow it.
struct Whole {
    request: Request,
    part: Box<dyn Plugin>,
    next: usize,
}

fn parse(request: &Request) -> Result<Box<dyn Plugin>, CniError> {
    request.config.decode::<Conf>()?;
    // What is wrong with a later part must be found before the first has made anything. None of them has a result yet.
    for (_, part) in wanted(&request.config, 0) {
        (part.plugin.parse)(&part.request(request, Some(&CniResult::default()))?)?;
    }
    Ok(Box::new(Whole { request: request.clone(), part: (bridge::TYPE.parse)(request)?, next: 0 }))
}

fn leftovers(request: &Request) -> Vec<Resource> {
    let of_part = |part: &Part| part.request(request, None).map(|it| (part.plugin.leftovers)(&it));
    let parts = PARTS.iter().filter_map(|part| of_part(part).ok()).flatten();
    (bridge::TYPE.leftovers)(request).into_iter().chain(parts).collect()
}

fn status(request: &Request, world: &mut World<'_>) -> anyhow::Result<()> {
    (bridge::TYPE.status)(request, world)?;
    for (_, part) in wanted(&request.config, 0) {
        (part.plugin.status)(&part.request(request, None)?, world)?;
    }
    Ok(())
}

impl Plugin for Whole {
    fn lease(&self) -> Option<Lease> {
        self.part.lease()
    }

    fn enters_pod(&self) -> bool {
        true
    }

    fn links(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        self.part.links(world)
    }

    fn plan(&self, leased: CniResult, world: &mut World<'_>) -> anyhow::Result<Plan> {
        self.part.plan(leased, world)
    }

    fn following(&self, result: &CniResult) -> Result<Option<Box<dyn Plugin>>, CniError> {
        let Some((index, part)) = wanted(&self.request.config, self.next).next() else { return Ok(None) };
        let plugin = (part.plugin.parse)(&part.request(&self.request, Some(result))?)?;
        Ok(Some(Box::new(Self { request: self.request.clone(), part: plugin, next: index + 1 })))
    }

    fn expect(&self, prev: &CniResult, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let mut resources = self.part.expect(prev, world)?;
        for (_, part) in wanted(&self.request.config, self.next) {
            let plugin = (part.plugin.parse)(&part.request(&self.request, Some(prev))?)?;
            resources.extend(plugin.expect(prev, world)?);
        }
        Ok(resources)
    }
}
