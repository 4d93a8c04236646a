//! The pod's interface, whichever plugin makes it: where its addresses come from, what they need, and how the result
//! tells of it.

use super::conf::DnsConf;
use super::ipam;
use crate::net::Mac;
use crate::resource::addressing::decide_next_hops;
use crate::resource::{self, Lease, Resource, World};
use crate::spec::result::{Dns, Interface};
use crate::spec::{Attachment, CniError, CniResult, Request, Version};

/// What of the pod's interface the configuration decides.
#[derive(Clone, Debug)]
pub(super) struct PodInterface {
    /// Whose it is.
    pub(super) attachment: Attachment,
    /// Path of the pod's namespace, as the runtime says it.
    pub(super) sandbox: String,
    /// Where its addresses come from; nowhere if it is for other protocols.
    pub(super) lease: Option<Lease>,
    /// `enabledad`: whether the kernel looks for others that have its IPv6 addresses.
    pub(super) detect_duplicates: bool,
    /// The version that the result is told in.
    pub(super) version: Version,
    dns: Option<Dns>,
}

impl PodInterface {
    /// What the request says of it. `detect_duplicates` is not decided, and false.
    ///
    /// Errors: code 7 for an `ipam`, `lockTimeout` or `delegateTimeout` that is wrong.
    pub(super) fn parse(request: &Request, dns: DnsConf) -> Result<Self, CniError> {
        request.config.check_ipam()?;
        request.config.lock_timeout()?;
        request.config.delegate_timeout()?;
        Ok(Self {
            attachment: request.attachment.clone(),
            sandbox: request.netns.as_ref().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default(),
            lease: Lease::wanted_by(request),
            detect_duplicates: false,
            version: request.config.version,
            dns: dns.into_override(),
        })
    }

    /// Whether the IPAM is asked over it, so that it is there before its addresses.
    pub(super) fn is_before_addresses(&self) -> bool {
        self.lease.as_ref().is_some_and(Lease::needs_link)
    }

    /// The error of code 50 if it could have no address now.
    pub(super) fn status(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        self.lease.as_ref().map_or(Ok(()), |lease| ipam::status(lease, world))
    }

    /// What the IPAM has answered, with what the configuration says instead. `index` is that of the interface in the
    /// result.
    ///
    /// Errors: code 7 for an IPAM that gave no address.
    pub(super) fn adopt(&self, leased: CniResult, index: usize) -> Result<CniResult, CniError> {
        if self.lease.is_some() && leased.ips.is_empty() {
            return Err(CniError::config("ipam: IPAM plugin returned missing IP config"));
        }
        let mut ipam = leased;
        for ip in &mut ipam.ips {
            ip.interface = Some(index);
        }
        if let Some(dns) = &self.dns {
            ipam.dns = dns.clone();
        }
        Ok(ipam)
    }

    /// The lease as it is with these addresses.
    pub(super) fn leased(&self, ipam: &CniResult) -> Option<Resource> {
        self.lease.clone().map(|lease| Resource::Lease(lease.with_addresses_of(ipam)))
    }

    /// It, up, so that an IPAM can be asked over it.
    pub(super) fn up(&self) -> Resource {
        Resource::PodLinkUp(resource::PodLinkUp { ifname: self.attachment.ifname.clone() })
    }

    /// What has to be so before it gets its addresses.
    pub(super) fn sysctls(&self, ipam: &CniResult) -> Option<Resource> {
        ipam.ips.iter().any(|ip| ip.address.is_ipv6()).then(|| {
            Resource::PodSysctls(resource::PodSysctls {
                ifname: self.attachment.ifname.clone(),
                detect_duplicates: self.detect_duplicates,
            })
        })
    }

    /// Its addresses and routes.
    pub(super) fn addressing(&self, ipam: &CniResult) -> resource::Addressing {
        resource::Addressing {
            ifname: self.attachment.ifname.clone(),
            addresses: ipam.ips.iter().map(|ip| ip.address).collect(),
            routes: decide_next_hops(ipam),
            detect_duplicates: self.detect_duplicates,
        }
    }

    /// What tells its neighbours, where it has a MAC address and any of IP.
    pub(super) fn announcement(&self, mac: Option<Mac>, ipam: &CniResult) -> Option<Resource> {
        let mac = mac.filter(|_| !ipam.ips.is_empty())?;
        // Others are announced by the kernel, once it knows that nobody else has them.
        let is_ready = |it: &std::net::IpAddr| it.is_ipv4() || !self.detect_duplicates;
        Some(Resource::Announcement(resource::Announcement {
            ifname: self.attachment.ifname.clone(),
            mac,
            addresses: ipam.ips.iter().map(|ip| ip.address.address()).filter(is_ready).collect(),
        }))
    }

    /// How the result tells of it.
    pub(super) fn in_result(&self, mac: Option<Mac>, mtu: Option<u32>) -> Interface {
        Interface { sandbox: self.sandbox.clone(), ..self.link_in_result(&self.attachment.ifname, mac, mtu) }
    }

    /// How the result tells of a link of the host that goes with it.
    pub(super) fn link_in_result(&self, name: &str, mac: Option<Mac>, mtu: Option<u32>) -> Interface {
        Interface {
            name: name.to_owned(),
            mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
            // Decoders of older versions may refuse a key that they do not know.
            mtu: mtu.filter(|_| self.version >= Version::V1_1_0),
            ..Interface::default()
        }
    }
}
