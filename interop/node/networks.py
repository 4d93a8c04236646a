"""The networks on which runtimes are tried."""

import json
import os

# What the sandbox has of the repository.
_CONFIGURATIONS = "/test-configs"


def configured(file, version=None):
    """A network of test-configs/, in another version of CNI if one is given."""
    with open(f"{_CONFIGURATIONS}/{file}", encoding="utf-8") as text:
        network = json.load(text)
    return network | ({"cniVersion": version} if version else {})


def installed():
    """What containerd's own install script writes: two families, promiscMode, portmap."""
    return configured("20-containerd.conflist")


def chain(version="1.0.0"):
    """All plugins that a chain for pods usually has."""
    return {
        "cniVersion": version,
        "name": "chain",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "chain0",
                "isDefaultGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": "10.70.0.0/24"}], [{"subnet": "fd70::/64"}]],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "firewall"},
            {"type": "bandwidth", "capabilities": {"bandwidth": True}},
            {"type": "tuning", "sysctl": {"net.core.somaxconn": "512"}},
        ],
    }


def one_entry(version="1.0.0"):
    """The chain as one entry, which takes the runtime's ports and limits too."""
    network = configured("90-one-entry.conflist", version)
    network["plugins"][0]["capabilities"] = {"portMappings": True, "bandwidth": True}
    return network


def nftables(version):
    """The chain with nothing in iptables: bridge, portmap, firewall."""
    network = configured("65-portmap-nftables.conflist", version)
    network["plugins"].append({"type": "firewall", "backend": "nftables"})
    return network


def ptp(version):
    """What a cluster with routed pods has: no bridge, and ports."""
    network = configured("15-ptp.conflist", version)
    network["plugins"].append({"type": "portmap", "capabilities": {"portMappings": True}})
    return network


def small(version):
    """A network with room for one pod."""
    return {
        "cniVersion": version,
        "name": "small",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "small0",
                "isGateway": True,
                "ipMasq": True,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.71.0.0/30"}]]},
            }
        ],
    }


def for_containerd(plugins, version):
    """The networks, by what they are called in the table, that the plugins of a directory can make."""
    found = {"install-cni": installed(), "chain": chain(version), "ptp": ptp(version)}
    if os.path.exists(f"{plugins}/bridgehead"):
        # The reference has no firewall in nftables.
        found |= {"one entry": one_entry(version), "nftables": nftables(version)}
    return found
