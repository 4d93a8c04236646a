//! What file below /proc/sys/net a sysctl's name means.

use crate::spec::CniError;

/// Stands for the name of the pod's interface.
const IFNAME: &str = "IFNAME";

/// The files, relative to /proc/sys/net, that a key may mean; the first that is there is meant.
///
/// The reference takes every dot for a slash and then puts the interface's name in the place of the first `IFNAME`. So
/// it has no way to name an interface with dots. Here the name of the pod's own interface keeps its dots, and where the
/// reference's file is not there, the key is read as sysctl(8) does: `net/ipv4/conf/eth0.5/forwarding`, or with dots and
/// slashes exchanged.
///
/// Errors: code 7 for a key that does not lead to below `net`.
pub(super) fn names(key: &str, ifname: &str) -> Result<Vec<String>, CniError> {
    let mut protected = key.to_owned();
    if ifname.contains('.') && !key.contains(IFNAME) {
        for mark in ['.', '/'] {
            let own = format!("{mark}{ifname}{mark}");
            protected = protected.replacen(&own, &format!("{mark}{IFNAME}{mark}"), 1);
        }
    }
    let as_reference = protected.replace('.', "/");
    let as_sysctl = match protected.find(['.', '/']).and_then(|at| protected.get(at..=at)) {
        Some("/") => protected.clone(),
        _ => protected
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
    };
    let mut names: Vec<String> = Vec::new();
    let leads_back = key.split('/').any(|part| part == "..");
    for text in [as_reference, as_sysctl] {
        if !leads_back
            && let Some(name) = below_net(&text.replacen(IFNAME, ifname, 1))
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    if names.is_empty() {
        let msg = format!(
            "sysctl: invalid net sysctl key {key:?}; wanted is one below net, such as \"net.ipv4.conf.IFNAME.arp_notify\""
        );
        return Err(CniError::config(msg));
    }
    Ok(names)
}

/// The rest of a path that begins with `net`; `None` for others, and for what could lead out again.
fn below_net(path: &str) -> Option<String> {
    let mut parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    if parts.next() != Some("net") {
        return None;
    }
    let rest: Vec<&str> = parts.collect();
    let is_safe = !rest.is_empty() && !rest.iter().any(|part| *part == ".." || part.contains('\0'));
    is_safe.then(|| rest.join("/"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_read_as_the_reference_reads_them_first() {
        for (key, ifname, wanted) in [
            ("net.core.somaxconn", "eth0", vec!["core/somaxconn"]),
            ("net/core/somaxconn", "eth0", vec!["core/somaxconn"]),
            ("/net/core//somaxconn", "eth0", vec!["core/somaxconn"]),
            ("net.ipv4.conf.IFNAME.arp_filter", "eth0", vec!["ipv4/conf/eth0/arp_filter"]),
            ("net.ipv4.conf.IFNAME.arp_filter", "eth0.5", vec!["ipv4/conf/eth0.5/arp_filter"]),
            ("net.ipv4.conf.eth0.5.arp_filter", "eth0.5", vec!["ipv4/conf/eth0.5/arp_filter"]),
            ("net/ipv4/conf/eth0.5/arp_filter", "eth0.5", vec!["ipv4/conf/eth0.5/arp_filter"]),
            (
                "net/ipv4/conf/eth1.5/arp_filter",
                "eth0",
                vec!["ipv4/conf/eth1/5/arp_filter", "ipv4/conf/eth1.5/arp_filter"],
            ),
            (
                "net.ipv4.conf.eth1/5.arp_filter",
                "eth0",
                vec!["ipv4/conf/eth1/5/arp_filter", "ipv4/conf/eth1.5/arp_filter"],
            ),
        ] {
            assert_eq!(names(key, ifname).unwrap(), wanted, "{key}");
        }
    }

    #[test]
    fn keys_beyond_net_are_refused() {
        for key in ["", "net", "net.", "kernel.hostname", "net/../kernel/hostname", "network.x", "vm.net.x"] {
            let error = names(key, "eth0").unwrap_err();
            assert!(error.code == 7 && error.msg.contains("invalid net sysctl key"), "{key}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_key_leads_out_of_net(key in "(net)?[./a-cIFNAME]{0,30}", ifname in "[a-c.]{1,15}") {
            prop_assume!(crate::spec::names::check_ifname(&ifname).is_ok());
            for name in names(&key, &ifname).unwrap_or_default() {
                prop_assert!(!name.starts_with('/') && !name.split('/').any(|part| part == ".."), "{}", name);
            }
        }
    }
}
