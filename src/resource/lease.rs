//! Addresses from an IPAM: in this process where that is this program too, else from the plugin on `CNI_PATH`.

use std::ffi::{CStr, c_char};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::stat;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Finding, Kept, World};
use crate::dhcp::{self, Client, DhcpConf};
use crate::ipam::fixed::Static;
use crate::ipam::host_local::{self, HostLocal};
use crate::ipam::{Owner, Store};
use crate::runtime::invoke;
use crate::spec::config::{DELEGATE_TIMEOUT, LOCK_TIMEOUT, ValidAttachments};
use crate::spec::result::IpConfig;
use crate::spec::{Attachment, CniError, CniResult, Code, Command, Request};

/// The IPAM plugins that this program is.
const HOST_LOCAL: &str = "host-local";
const STATIC: &str = "static";
const DHCP: &str = dhcp::NAME;

/// The addresses of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Whose.
    pub attachment: Attachment,
    /// Where they come from.
    pub source: Source,
    /// The addresses as far as they are known: on a CHECK, and in a record.
    pub given: Vec<IpConfig>,
}

/// Where addresses come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Our `host-local`.
    HostLocal {
        /// Directory of the reservations of all networks.
        data_dir: PathBuf,
    },
    /// Our `static`.
    Static,
    /// Our `dhcp`.
    Dhcp {
        /// Where its daemon listens.
        socket: PathBuf,
    },
    /// Another program.
    Delegated {
        /// Its name on `CNI_PATH`.
        plugin: String,
    },
}

impl Lease {
    /// The lease that a request's `ipam.type` asks for; `None` where there is no IPAM.
    pub fn wanted_by(request: &Request) -> Option<Self> {
        request.config.ipam_type.as_deref().map(|plugin| Self::from(plugin, request))
    }

    fn from(plugin: &str, request: &Request) -> Self {
        match plugin {
            HOST_LOCAL if is_this_program(plugin, request) => Self::host_local(request),
            STATIC if is_this_program(plugin, request) => Self::fixed(request),
            DHCP if is_this_program(plugin, request) => Self::dhcp(request),
            _ => Self::new(request, Source::Delegated { plugin: plugin.to_owned() }),
        }
    }

    /// The lease that our `host-local` gives for a request.
    pub fn host_local(request: &Request) -> Self {
        Self::new(request, Source::HostLocal { data_dir: host_local::data_dir_of(&request.config) })
    }

    /// The lease that our `static` gives for a request.
    pub fn fixed(request: &Request) -> Self {
        Self::new(request, Source::Static)
    }

    /// The lease that our `dhcp` gives for a request.
    pub fn dhcp(request: &Request) -> Self {
        Self::new(request, Source::Dhcp { socket: DhcpConf::socket_of(&request.config) })
    }

    fn new(request: &Request, source: Source) -> Self {
        Self { attachment: request.attachment.clone(), source, given: Vec::new() }
    }

    /// Whether it is had over a link of the pod, so that the link must be made before it is asked for, and removed after
    /// it is given back. It may be so with every IPAM that is not known better, as the reference's bridge has it.
    pub fn needs_link(&self) -> bool {
        match &self.source {
            Source::HostLocal { .. } | Source::Static => false,
            Source::Dhcp { .. } => true,
            Source::Delegated { plugin } => !matches!(plugin.as_str(), HOST_LOCAL | STATIC),
        }
    }

    /// The same lease with the addresses of a result.
    pub fn with_addresses_of(self, result: &CniResult) -> Self {
        Self { given: result.ips.clone(), ..self }
    }

    /// Takes the lease; the answer has addresses, routes and DNS settings.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<CniResult> {
        let request = world.request;
        match &self.source {
            Source::HostLocal { .. } => {
                let host_local = HostLocal::parse(&request.config, &request.args()?)?;
                Ok(host_local.lease(&self.attachment, &world.state)?)
            }
            Source::Static => Ok(Static::parse(&request.config, &request.args()?)?.result()),
            Source::Dhcp { socket } => {
                // What is wrong with it is found here, where there is an interface or not.
                DhcpConf::parse(&request.config, request.raw_args())?;
                Ok(Client::new(socket).allocate(request)?)
            }
            Source::Delegated { plugin } => {
                let answer = delegate(plugin, Command::Add, &self.attachment, request).map_err(|error| {
                    // It may have got half-way.
                    match delegate(plugin, Command::Del, &self.attachment, request) {
                        // Where it cannot be executed, it says nothing new.
                        Err(e) if (e.code, &e.msg) != (error.code, &error.msg) => error
                            .also([format!("IPAM plugin {plugin}: DEL after its failed ADD: {e}").as_str()]),
                        _ => error,
                    }
                })?;
                let what = format!("result of IPAM plugin {plugin}");
                let Some(answer) = answer else {
                    return Err(CniError::new(Code::Delegate, format!("{what}: there is none")).into());
                };
                Ok(CniResult::from_value(&answer, request.config.version, &what)?)
            }
        }
    }

    /// Tells which addresses are not reserved for the attachment.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let request = world.request;
        let sentences = match &self.source {
            Source::HostLocal { .. } => {
                let addresses: Vec<IpAddr> = self.given.iter().map(|ip| ip.address.address()).collect();
                let host_local = HostLocal::parse(&request.config, &request.args()?)?;
                host_local.observe(&self.attachment, &addresses, &world.state)?
            }
            Source::Static => {
                let given = CniResult { ips: self.given.clone(), ..CniResult::default() };
                Static::parse(&request.config, &request.args()?)?.observe(&given)
            }
            Source::Dhcp { socket } => {
                DhcpConf::parse(&request.config, request.raw_args())?;
                self.observe_dhcp(&Client::new(socket), request)?
            }
            Source::Delegated { plugin } => {
                delegate(plugin, Command::Check, &self.attachment, request)?;
                Vec::new()
            }
        };
        Ok(sentences.into_iter().map(Finding::told).collect())
    }

    fn observe_dhcp(&self, client: &Client, request: &Request) -> Result<Vec<String>, CniError> {
        let have = match client.look(request) {
            Ok(have) => have.ips,
            Err(e) if e.code == Code::Drift as u32 => return Ok(vec![e.msg]),
            Err(e) => return Err(e),
        };
        let missing = self.given.iter().filter(|ip| !have.iter().any(|it| it.address == ip.address));
        let instead: Vec<String> = have.iter().map(|it| it.address.to_string()).collect();
        let instead = instead.join(", ");
        Ok(missing
            .map(|ip| format!("the DHCP lease should be of {} and is of {instead}", ip.address))
            .collect())
    }

    /// Gives the addresses back.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        match &self.source {
            Source::HostLocal { data_dir } => {
                let given: Vec<IpAddr> = self.given.iter().map(|ip| ip.address.address()).collect();
                Store::new(data_dir, &self.attachment.network, &world.state).release(
                    &Owner::of(&self.attachment),
                    &given,
                    patience(world.request),
                )?;
            }
            Source::Static => {}
            Source::Dhcp { socket } => {
                Client::new(socket).release(world.request, &self.attachment, &world.state)?;
            }
            Source::Delegated { plugin } => {
                delegate(plugin, Command::Del, &self.attachment, world.request)?;
            }
        }
        Ok(())
    }

    /// Gives back what belongs to no valid attachment, nor to one that is kept.
    pub fn collect(
        &self,
        valid: &ValidAttachments,
        kept: &Kept<'_>,
        world: &mut World<'_>,
    ) -> anyhow::Result<()> {
        match &self.source {
            Source::HostLocal { data_dir } => {
                let store = Store::new(data_dir, &world.request.config.name, &world.state);
                if let Some(mut store) = store.lock(patience(world.request))? {
                    // Asked for while the store is locked: an ADD writes its record before it takes an address.
                    store.collect(valid, &kept()?)?.into_result()?;
                }
            }
            Source::Static => {}
            Source::Dhcp { socket } => {
                // Without a list, the daemon sees by itself whose namespace is gone.
                let ValidAttachments::Only(list) = valid else { return Ok(()) };
                let client = Client::new(socket);
                let all = client.list(world.request)?;
                // Asked for after what is there: an ADD writes its record before it asks for a lease.
                let kept = kept()?;
                let is_valid = |it: &Attachment| {
                    list.iter().any(|v| v.container_id == it.container_id && v.ifname == it.ifname)
                };
                for dead in all.iter().filter(|it| !is_valid(it) && !kept.contains(it)) {
                    client.release(world.request, dead, &world.state)?;
                }
            }
            Source::Delegated { plugin } => {
                delegate(plugin, Command::Gc, &self.attachment, world.request)?;
            }
        }
        Ok(())
    }

    /// Where addresses can be reclaimed, has `each` decide of whom: it gets every attachment that has some, and calls
    /// its last argument to give them back. Meanwhile nobody else can take or give back an address of the network.
    ///
    /// Tells whether any address is free now that was not.
    pub fn reclaim(
        &self,
        world: &mut World<'_>,
        mut each: impl FnMut(&Attachment, &mut World<'_>, &mut dyn FnMut() -> Result<(), CniError>),
    ) -> anyhow::Result<bool> {
        let Source::HostLocal { data_dir } = &self.source else { return Ok(false) };
        let network = &self.attachment.network;
        let store = Store::new(data_dir, network, &world.state);
        let Some(mut store) = store.lock(patience(world.request))? else { return Ok(false) };
        let released = store.reclaim(|owner, release| each(&attachment(network, owner), world, release))?;
        Ok(released > 0)
    }

    /// The error of code 50 if no address could be had now. Nothing is changed; `is_dead` tells whose addresses
    /// [`Lease::reclaim`] would give back.
    pub fn status(&self, world: &mut World<'_>, is_dead: impl Fn(&Attachment) -> bool) -> anyhow::Result<()> {
        let request = world.request;
        match &self.source {
            Source::HostLocal { .. } => {
                let network = &self.attachment.network;
                let host_local = HostLocal::parse(&request.config, &request.args()?)?;
                let unavailable = |error| CniError { code: Code::Unavailable as u32, ..error };
                host_local.dns().map_err(unavailable)?;
                let usage = host_local
                    .usage(&world.state, |owner| is_dead(&attachment(network, owner)))
                    .map_err(unavailable)?;
                if let Some(full) = usage.iter().find(|usage| usage.is_exhausted()) {
                    let msg = format!("no IP addresses available in range set: {}", full.ranges);
                    let details = format!("{} of {} addresses are taken", full.taken, full.total);
                    return Err(CniError::new(Code::Unavailable, msg).with_details(details).into());
                }
            }
            Source::Static => {
                Static::parse(&request.config, &request.args()?)?;
            }
            Source::Dhcp { socket } => {
                DhcpConf::parse(&request.config, request.raw_args())?;
                Client::new(socket).status()?;
            }
            Source::Delegated { plugin } => {
                // Without the plugin, or with one that cannot be executed, no ADD could be served either.
                delegate(plugin, Command::Status, &self.attachment, request).map_err(
                    |error| match error.code {
                        code if code == Code::Delegate as u32 => {
                            CniError { code: Code::Unavailable as u32, ..error }
                        }
                        _ => error,
                    },
                )?;
            }
        }
        Ok(())
    }
}

/// The attachment that an owner on a network is.
fn attachment(network: &str, owner: &Owner) -> Attachment {
    Attachment {
        network: network.to_owned(),
        container_id: owner.container_id.clone(),
        ifname: owner.ifname.clone(),
    }
}

/// How long to wait for the lock on a network's reservations. A DEL works with a configuration that is wrong.
fn patience(request: &Request) -> Duration {
    request.config.ipam_lock_timeout().unwrap_or(LOCK_TIMEOUT)
}

/// Whether a plugin of `CNI_PATH` is this very file under another name. One that is not there at all counts as ours,
/// so that the address of a pod can be given back while the plugin directory is being filled.
fn is_this_program(plugin: &str, request: &Request) -> bool {
    invoke::find(plugin, &request.path).map_or(true, |found| is_this_file(&found))
}

fn is_this_file(program: &Path) -> bool {
    let Ok(found) = stat(program) else { return false };
    let is_found =
        |own: &CStr| stat(own).is_ok_and(|own| (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino));
    // The path by which it was started tells at once; where a later version is there by now, that is this program too.
    called_as().is_some_and(is_found) || is_found(c"/proc/self/exe")
}

/// The path by which the kernel was told to start this program (`AT_EXECFN`, getauxval(3)).
fn called_as() -> Option<&'static CStr> {
    // SAFETY: the kernel has put a text that ends with NUL above the stack, where it stays.
    unsafe {
        let text = nix::libc::getauxval(nix::libc::AT_EXECFN) as *const c_char;
        if text.is_null() { None } else { Some(CStr::from_ptr(text)) }
    }
}

/// Executes another plugin as the IPAM that it is.
///
/// If it is this program as another plugin than an IPAM, it is not executed: it would do the same in its turn, and so
/// on without end. Having given no address it has none to take back.
fn delegate(
    plugin: &str,
    command: Command,
    attachment: &Attachment,
    request: &Request,
) -> Result<Option<Value>, CniError> {
    let is_ipam = matches!(plugin, HOST_LOCAL | STATIC | DHCP);
    if !is_ipam && invoke::find(plugin, &request.path).is_ok_and(|found| is_this_file(&found)) {
        return match command {
            Command::Del | Command::Gc => Ok(None),
            _ => Err(CniError::config(format!("ipam.type: {plugin:?} is no IPAM plugin"))),
        };
    }
    let deadline = match (request.config.delegate_timeout(), command) {
        // They work with a configuration that is wrong.
        (Err(_), Command::Del | Command::Gc) => DELEGATE_TIMEOUT,
        (timeout, _) => timeout?,
    };
    invoke::delegate(plugin, command, attachment, request, deadline)
}
