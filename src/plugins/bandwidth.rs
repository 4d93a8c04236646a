//! `bandwidth`: limits what a pod receives and sends. It stands behind a plugin that makes a veth pair.

mod conf;

use anyhow::bail;

use super::PluginType;
use super::conf::not_chained;
use crate::net::Link;
use crate::net::module::{self, Presence};
use crate::plan::{Plan, Plugin};
use crate::resource::{self, Lease, Resource, World, ifb};
use crate::spec::result::Interface;
use crate::spec::{Attachment, CniError, CniResult, Code, Request, Version, json};
use conf::Limits;

/// The plugin type.
pub const TYPE: PluginType = PluginType {
    name: "bandwidth",
    // A result without interfaces has no place for the link that it adds.
    versions: &[Version::V0_3_0, Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0],
    keys: json::keys_of::<conf::Conf>,
    parse: |request| Ok(Box::new(Bandwidth::parse(request)?)),
    leftovers,
    lease: |_| None,
    status,
};

struct Bandwidth {
    attachment: Attachment,
    version: Version,
    limits: Limits,
    prev_result: Option<CniResult>,
}

/// What is known of the pod's link on the host.
struct Facts {
    link: Link,
    ifb_name: String,
}

/// What the limits hang on goes with the pod's link, so only the links of kind ifb can be left.
fn leftovers(request: &Request) -> Vec<Resource> {
    let attachment = &request.attachment;
    let own = ifb::names(attachment)
        .into_iter()
        .map(|name| Resource::Ifb(resource::Ifb::of(attachment, name)))
        .collect::<Vec<_>>();
    // The reference's may be that of another interface of the container; the result tells, if there is one.
    let [usual, _] = ifb::names(attachment);
    let prev = request.config.prev_result().ok().flatten();
    let is_of_another = prev
        .is_some_and(|prev| !prev.interfaces.is_empty() && prev.interfaces.iter().all(|i| i.name != usual));
    let foreign = Resource::ForeignIfb(resource::ForeignIfb { attachment: attachment.clone() });
    own.into_iter().chain((!is_of_another).then_some(foreign)).collect()
}

/// The error of code 50 if the kernel cannot do what the network wants of every pod. What a pod wants is not known yet,
/// and most want nothing.
fn status(request: &Request, world: &mut World<'_>) -> anyhow::Result<()> {
    let limits = Limits::parse_configured(request)?.unwrap_or_default();
    let lacks = |what: &str| {
        let msg = format!("this kernel has no {what}");
        Err(CniError::new(Code::Unavailable, msg).into())
    };
    if !limits.are_none()
        && module::presence("sch_tbf") == Presence::Unknown
        && !world.host()?.has_buckets()?
    {
        return lacks("tbf (module sch_tbf, CONFIG_NET_SCH_TBF)");
    }
    if limits.egress.is_some()
        && module::presence("ifb") == Presence::Unknown
        && !world.host()?.has_kind("ifb")?
    {
        return lacks("links of kind ifb (module ifb, CONFIG_IFB)");
    }
    Ok(())
}

impl Bandwidth {
    fn parse(request: &Request) -> Result<Self, CniError> {
        Ok(Self {
            attachment: request.attachment.clone(),
            version: request.config.version,
            limits: Limits::parse(request)?,
            prev_result: request.config.prev_result()?,
        })
    }

    /// What the limits are made of.
    fn resources(&self, facts: &Facts) -> Vec<Resource> {
        let ifb = self.limits.egress.map(|_| resource::Ifb {
            attachment: self.attachment.clone(),
            name: facts.ifb_name.clone(),
            mac: ifb::mac(&self.attachment),
            mtu: facts.link.mtu,
        });
        let shape = resource::TrafficShape {
            link: facts.link.name.clone(),
            index: facts.link.index,
            ingress: self.limits.ingress,
            egress: self.limits.egress.map(|limit| (limit, facts.ifb_name.clone())),
        };
        ifb.map(Resource::Ifb).into_iter().chain([Resource::TrafficShape(shape)]).collect()
    }

    /// The pod's link on the host: the other end of the pair that this interface is an end of, whichever links the result
    /// has besides.
    fn host_link(&self, prev: &CniResult, world: &mut World<'_>) -> anyhow::Result<Link> {
        let ifname = &self.attachment.ifname;
        let wrong = |msg: String| Err(CniError::config(msg).into());
        let Some(inside) = world.pod()?.rtnl()?.link(ifname)? else {
            return wrong(format!(
                "the container has no interface {ifname:?}: bandwidth must stand in the chain behind the plugin that \
                 makes it"
            ));
        };
        let kind = if inside.kind.is_empty() { "device" } else { &inside.kind };
        let outside = match inside.peer {
            Some(index) => world.host()?.link_by_index(index)?,
            None => None,
        };
        // Both must say so: the index of a link that is somewhere else can be that of any link here.
        let Some(outside) = outside.filter(|it| it.kind == inside.kind && it.peer == Some(inside.index))
        else {
            return wrong(format!(
                "interface {ifname:?} of the container is a {kind} without an end on the host: bandwidth limits the \
                 traffic of veth pairs"
            ));
        };
        if !prev.interfaces.iter().any(|it| it.sandbox.is_empty() && it.name == outside.name) {
            return wrong(format!(
                "prevResult.interfaces: link {:?}, the host's end of interface {ifname:?}, is not among them",
                outside.name
            ));
        }
        if let Some(limit) =
            [self.limits.ingress, self.limits.egress].iter().flatten().min_by_key(|l| l.burst)
            && limit.largest_packet() < u64::from(outside.mtu)
        {
            log::warn!(
                "a burst of {} bits is less than the MTU of {} bytes: larger packets than that are lost",
                limit.burst,
                outside.mtu
            );
        }
        Ok(outside)
    }
}

impl Plugin for Bandwidth {
    fn lease(&self) -> Option<Lease> {
        None
    }

    fn enters_pod(&self) -> bool {
        true
    }

    fn plan(&self, _: CniResult, world: &mut World<'_>) -> anyhow::Result<Plan> {
        let Some(prev) = &self.prev_result else {
            bail!(not_chained("bandwidth", "makes the interface"));
        };
        if self.limits.are_none() {
            return Ok(Plan { resources: Vec::new(), result: prev.clone() });
        }
        let link = self.host_link(prev, world)?;
        let ifb_name = match self.limits.egress {
            Some(_) => ifb::choose_name(&self.attachment, &link, world)?,
            None => String::new(),
        };
        let mut result = prev.clone();
        if self.limits.egress.is_some() {
            // An ADD that is repeated may get what the one before has answered.
            result.interfaces.retain(|it| it.name != ifb_name);
            result.interfaces.push(Interface {
                name: ifb_name.clone(),
                mac: ifb::mac(&self.attachment).to_string(),
                // Decoders of older versions may refuse a key that they do not know.
                mtu: (self.version >= Version::V1_1_0).then_some(link.mtu),
                ..Interface::default()
            });
        }
        Ok(Plan { resources: self.resources(&Facts { link, ifb_name }), result })
    }

    fn expect(&self, prev: &CniResult, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        if self.limits.are_none() {
            return Ok(Vec::new());
        }
        let link = self.host_link(prev, world)?;
        let [usual, own] = ifb::names(&self.attachment);
        let ifb_name = if prev.interfaces.iter().any(|it| it.name == own) { own } else { usual };
        Ok(self.resources(&Facts { link, ifb_name }))
    }
}
