//! The `host-local` IPAM: addresses out of ranges, recorded on this host.
//!
//! ```json
//! {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}
//! ```

use std::fs::OpenOptions;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use serde::Deserialize;
use serde_json::Value;

use super::directory::{errno_of, read_all, state_error};
use super::range::{RangeConf, RangeSet, check_sets};
use super::reservation::Owner;
use super::resolv_conf;
use super::store::Store;
use super::survey::{Usage, given_by};
use crate::spec::result::{Dns, Route};
use crate::spec::{Args, Attachment, CniError, CniResult, Code, NetConf, Prefix, json};

/// Where reservations are kept if the configuration does not say, as in the reference.
pub const DATA_DIR: &str = "/var/lib/cni/networks";

/// What the configuration and its caller ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLocal {
    network: String,
    data_dir: PathBuf,
    sets: Vec<RangeSet>,
    requested: Vec<IpAddr>,
    routes: Vec<Route>,
    resolv_conf: Option<PathBuf>,
    lock_timeout: Duration,
}

/// `ipam` as it was written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct IpamConf {
    ranges: Vec<Vec<RangeConf>>,
    subnet: Option<Prefix>,
    #[serde(deserialize_with = "json::address")]
    range_start: Option<IpAddr>,
    #[serde(deserialize_with = "json::address")]
    range_end: Option<IpAddr>,
    #[serde(deserialize_with = "json::address")]
    gateway: Option<IpAddr>,
    routes: Vec<Route>,
    data_dir: String,
    resolv_conf: String,
}

/// The configuration as far as it concerns this IPAM.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Conf {
    ipam: Option<IpamConf>,
    runtime_config: RuntimeConf,
    args: ArgsConf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RuntimeConf {
    ip_ranges: Vec<Vec<RangeConf>>,
    ips: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ArgsConf {
    cni: CniArgs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CniArgs {
    ips: Vec<String>,
}

/// Where a configuration has its reservations kept, from as little of it as possible: DEL and GC work with one whose
/// ranges no longer make sense.
pub fn data_dir_of(conf: &NetConf) -> PathBuf {
    conf.get("ipam")
        .and_then(Value::as_object)
        .and_then(|ipam| json::get(ipam, "dataDir"))
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
        .unwrap_or(DATA_DIR)
        .into()
}

impl HostLocal {
    /// The keys of `ipam`.
    pub fn keys() -> &'static [&'static str] {
        json::keys_of::<IpamConf>()
    }

    /// Reads a configuration for ADD, CHECK or STATUS; DEL and GC need [`data_dir_of`] only.
    ///
    /// Range sets are numbered in this order: `runtimeConfig.ipRanges`, the range that stands in `ipam` itself (the
    /// oldest form), `ipam.ranges`. Requested addresses are those of `runtimeConfig.ips` and of `args.cni.ips`;
    /// without either, `IP` of `CNI_ARGS`, since CONVENTIONS.md has `args` override `CNI_ARGS`.
    ///
    /// Errors: code 6 for JSON of the wrong shape, code 7 for values, code 4 for `CNI_ARGS`;
    /// all name the key.
    pub fn parse(conf: &NetConf, args: &Args) -> Result<Self, CniError> {
        let parsed: Conf = conf.decode()?;
        let Some(ipam) = parsed.ipam else {
            return Err(CniError::config("IPAM config missing 'ipam' key"));
        };
        let mut sets = Vec::new();
        for (i, ranges) in parsed.runtime_config.ip_ranges.iter().enumerate() {
            let key = format!("runtimeConfig.ipRanges[{i}]");
            sets.push((key.clone(), RangeSet::new(ranges, &key)?));
        }
        if ipam.subnet.is_some() {
            let (subnet, range_start) = (ipam.subnet, ipam.range_start);
            let range = RangeConf { subnet, range_start, range_end: ipam.range_end, gateway: ipam.gateway };
            sets.push(("ipam".to_owned(), RangeSet::single(&range, "ipam")?));
        }
        for (i, ranges) in ipam.ranges.iter().enumerate() {
            let key = format!("ipam.ranges[{i}]");
            sets.push((key.clone(), RangeSet::new(ranges, &key)?));
        }
        check_sets(&sets, conf.version)?;
        let mut requested = addresses("runtimeConfig.ips", &parsed.runtime_config.ips)?;
        requested.extend(addresses("args.cni.ips", &parsed.args.cni.ips)?);
        if requested.is_empty()
            && let Some(text) = args.get("IP")
        {
            let invalid =
                || CniError { code: Code::InvalidEnvironment as u32, ..invalid("CNI_ARGS: IP", text) };
            requested.push(address(text).ok_or_else(invalid)?);
        }
        Ok(Self {
            network: conf.name.clone(),
            data_dir: PathBuf::from(if ipam.data_dir.is_empty() { DATA_DIR } else { &ipam.data_dir }),
            sets: sets.into_iter().map(|(_, set)| set).collect(),
            requested,
            routes: ipam.routes,
            resolv_conf: Some(PathBuf::from(ipam.resolv_conf)).filter(|path| !path.as_os_str().is_empty()),
            lock_timeout: conf.ipam_lock_timeout()?,
        })
    }

    /// The range sets; an attachment gets one address of each.
    pub fn sets(&self) -> &[RangeSet] {
        &self.sets
    }

    /// The store of the network.
    pub fn store(&self, state: &Path) -> Store {
        Store::new(&self.data_dir, &self.network, state)
    }

    /// ADD: reserves an address of each set, and answers with them, the routes and the DNS settings.
    ///
    /// `state` is where this suite keeps what lives as long as the boot. Errors: see [`Store::lock`] and
    /// [`LockedStore::allocate`](super::store::LockedStore::allocate); code 105 if resolvConf cannot be read.
    pub fn lease(&self, attachment: &Attachment, state: &Path) -> Result<CniResult, CniError> {
        let dns = self.dns()?;
        let mut store = self.store(state).lock_or_create(self.lock_timeout)?;
        let ips = store.allocate(&self.sets, &self.requested, &Owner::of(attachment))?;
        Ok(CniResult { interfaces: Vec::new(), ips, routes: self.routes.clone(), dns })
    }

    /// CHECK: what is wrong, as sentences. `expected` are the addresses of the previous result; those that lie in no
    /// set are another IPAM's.
    pub fn observe(
        &self,
        attachment: &Attachment,
        expected: &[IpAddr],
        state: &Path,
    ) -> Result<Vec<String>, CniError> {
        let owner = Owner::of(attachment);
        match self.store(state).lock(self.lock_timeout)? {
            Some(mut store) => store.observe(&owner, &given_by(&self.sets, expected)),
            None => Ok(vec![format!(
                "no address is reserved for {owner}: {} is not there",
                self.data_dir.join(&self.network).display()
            )]),
        }
    }

    /// STATUS: how much of each set is in use; see [`Store::usage`].
    pub fn usage(&self, state: &Path, is_dead: impl FnMut(&Owner) -> bool) -> Result<Vec<Usage>, CniError> {
        self.store(state).usage(&self.sets, is_dead)
    }

    /// What `resolvConf` says; code 105 if it cannot be read.
    pub fn dns(&self) -> Result<Dns, CniError> {
        let Some(path) = &self.resolv_conf else { return Ok(Dns::default()) };
        // Whatever is there, nobody waits for a pipe, and a device without end is not read to it.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        match opened.map_err(|error| errno_of(&error)).and_then(|mut file| read_all(&mut file)) {
            Ok(content) => Ok(resolv_conf::parse(&String::from_utf8_lossy(&content))),
            Err(errno) => Err(state_error("read ipam.resolvConf", path, errno)),
        }
    }
}

/// An address with or without a prefix length, which does not count: the range's does.
fn address(text: &str) -> Option<IpAddr> {
    match text.contains('/') {
        true => text.parse::<Prefix>().ok().map(Prefix::address),
        false => text.parse::<IpAddr>().ok().map(|it| it.to_canonical()),
    }
}

fn addresses(key: &str, texts: &[String]) -> Result<Vec<IpAddr>, CniError> {
    let parse =
        |(i, text): (usize, &String)| address(text).ok_or_else(|| invalid(&format!("{key}[{i}]"), text));
    texts.iter().enumerate().map(parse).collect()
}

fn invalid(key: &str, text: &str) -> CniError {
    CniError::config(format!("{key}: invalid IP address {text:?}; wanted is an address such as 10.1.0.5"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str, args: &str) -> Result<HostLocal, CniError> {
        HostLocal::parse(&NetConf::parse(json.as_bytes()).unwrap(), &Args::parse(args).unwrap())
    }

    fn sets(json: &str) -> Vec<String> {
        parse(json, "").unwrap().sets.iter().map(RangeSet::to_string).collect()
    }

    fn requested(json: &str, args: &str) -> Vec<String> {
        parse(json, args).unwrap().requested.iter().map(IpAddr::to_string).collect()
    }

    #[test]
    fn sets_are_numbered_as_the_reference_numbers_them() {
        assert_eq!(
            sets(
                r#"{"name": "n", "cniVersion": "1.0.0",
                    "runtimeConfig": {"ipRanges": [[{"subnet": "10.3.0.0/16"}], [{"subnet": "10.4.0.0/16"}]]},
                    "ipam": {"Subnet": "10.1.0.0/16", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.20",
                             "ranges": [[{"subnet": "10.2.0.0/30"}, {"subnet": "10.5.0.0/30"}]]}}"#
            ),
            [
                "10.3.0.1-10.3.255.254",
                "10.4.0.1-10.4.255.254",
                "10.1.0.9-10.1.0.20",
                "10.2.0.1-10.2.0.2,10.5.0.1-10.5.0.2"
            ]
        );
    }

    #[test]
    fn errors_name_the_key() {
        let refused = |json: &str| parse(json, "").unwrap_err().msg;
        assert_eq!(refused(r#"{"name": "n"}"#), "IPAM config missing 'ipam' key");
        assert_eq!(refused(r#"{"name": "n", "ipam": {}}"#), "no IP ranges specified");
        assert!(
            refused(r#"{"name": "n", "ipam": {"subnet": "10.1.0.1/16"}}"#)
                .starts_with("ipam.subnet: 10.1.0.1/16 has host bits set; the network is 10.1.0.0/16")
        );
        assert!(
            refused(
                r#"{"name": "n", "ipam": {}, "runtimeConfig": {"ipRanges": [[{"subnet": "10.1.0.0/31"}]]}}"#
            )
            .starts_with("runtimeConfig.ipRanges[0][0].subnet: network 10.1.0.0/31 is too small")
        );
        assert!(
            refused(r#"{"name": "n", "ipam": {"ranges": [[{"subnet": "10.1.0.0"}]]}}"#)
                .contains("ipam.ranges[0][0].subnet: invalid CIDR address")
        );
    }

    #[test]
    fn cni_args_count_only_where_nothing_newer_speaks() {
        let ipam = r#""name": "n", "ipam": {"subnet": "10.1.0.0/16"}"#;
        let (old, plain) = ("IP=10.1.0.9/24", format!("{{{ipam}}}"));
        assert_eq!(requested(&plain, old), ["10.1.0.9"]);
        let args = r#""args": {"cni": {"ips": ["10.1.0.8"]}}"#;
        assert_eq!(requested(&format!("{{{ipam}, {args}}}"), old), ["10.1.0.8"]);
        let runtime = r#""runtimeConfig": {"ips": ["10.1.0.7/16"]}"#;
        assert_eq!(requested(&format!("{{{ipam}, {args}, {runtime}}}"), old), ["10.1.0.7", "10.1.0.8"]);
        assert_eq!(parse(&plain, "IP=x").unwrap_err().code, 4);
        let error = parse(&format!(r#"{{{ipam}, "args": {{"cni": {{"ips": ["x"]}}}}}}"#), "").unwrap_err();
        assert!(error.msg.starts_with("args.cni.ips[0]: invalid IP address \"x\""), "{error}");
    }

    #[test]
    fn a_resolv_conf_without_end_is_read_to_some_end() {
        let json = r#"{"name": "n", "ipam": {"subnet": "10.1.0.0/16", "resolvConf": "/dev/zero"}}"#;
        assert_eq!(parse(json, "").unwrap().dns(), Ok(Dns::default()));
    }

    #[test]
    fn the_store_needs_no_valid_ranges() {
        let conf = |json: &str| NetConf::parse(json.as_bytes()).unwrap();
        let path = |json: &str| data_dir_of(&conf(json)).join("n");
        assert_eq!(path(r#"{"name": "n", "ipam": {"ranges": 7, "DataDir": "/d"}}"#), Path::new("/d/n"));
        assert_eq!(path(r#"{"name": "n"}"#), Path::new("/var/lib/cni/networks/n"));
    }
}
