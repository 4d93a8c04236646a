"""Plugins exchanged beneath a running containerd: pods of one suite are checked and removed by the other. Arguments:
filter of cases, directory of plugins."""

import concurrent.futures
import os
import sys

from node import host, networks
from node.containerd import Containerd
from node.cri import TCP, UDP
from node.libcni import Client
from node.suite import Suite, expect_equal

# With containerd's burst, the numbers of a rate of less than 15.6 Mbit/s are more than 32 bits have room for. The
# reference takes what is left of them, so it does not find ours right.
SLOW = {"kubernetes.io/ingress-bandwidth": "16M", "kubernetes.io/egress-bandwidth": "8M"}
FAST = {"kubernetes.io/ingress-bandwidth": "32M", "kubernetes.io/egress-bandwidth": "16M"}
OURS = "/plugins/ours"


def ports(number):
    """Ports of the host for a pod."""
    return [(TCP, 80, 8100 + number, ""), (UDP, 9000, 9100 + number, "")]


class Exchange:
    """The cases of one network, and of one direction."""

    PODS = 4

    def __init__(self, containerd, client, network, before, after):
        self.cri = containerd.cri
        self.client = client
        self.network = network["name"]
        self.rates = FAST if before == OURS else SLOW
        self.before = before
        self.after = after

    def start(self, numbers):
        """Pods of these numbers, at once: their ids."""
        with concurrent.futures.ThreadPoolExecutor(len(numbers)) as at_once:
            return list(at_once.map(lambda n: self.cri.run_pod(f"pod-{n}", ports(n), self.rates), numbers))

    def remove(self, pods):
        """Stops and removes pods, at once."""

        def one(pod):
            self.cri.stop_pod(pod)
            self.cri.remove_pod(pod)

        with concurrent.futures.ThreadPoolExecutor(len(pods)) as at_once:
            list(at_once.map(one, pods))

    def expect_served(self, numbers):
        """Fails unless all pods can be reached by their ports."""
        for number in numbers:
            expect_equal("who answers", host.ask(host.OUTSIDE, host.HOST_V4, 8100 + number)[0], f"pod-{number}")

    def check(self):
        """CHECK of the other's pods finds nothing, and neither takes anything away nor adds any."""
        host.use_plugins(self.before)
        pods = self.start(range(2))
        try:
            host.use_plugins(self.after)
            before = host.snapshot()
            for pod in pods:
                self.client.check(self.network, self.cri.pod(pod)["namespace"], pod)
            expect_equal("what CHECK has changed", host.snapshot() ^ before, set())
        finally:
            host.use_plugins(self.before)
            self.remove(pods)

    def delete(self):
        """Pods of the one are removed by the other, and their addresses and ports serve new ones, of both."""
        numbers = range(self.PODS)
        host.use_plugins(self.before)
        pods = self.start(numbers)
        host.use_plugins(self.after)
        self.expect_served(numbers)
        self.remove(pods)
        for plugins in self.after, self.before:
            host.use_plugins(plugins)
            pods = self.start(numbers)
            self.expect_served(numbers)
            self.remove(pods)

    def beside(self):
        """Pods of both at once have different addresses; those of the one do not suffer when the other's go."""
        host.use_plugins(self.before)
        old = self.start(range(self.PODS))
        host.use_plugins(self.after)
        numbers = range(self.PODS, 2 * self.PODS)
        new = self.start(numbers)
        addresses = [address for pod in old + new for address in self.cri.pod(pod)["addresses"]]
        expect_equal("number of different addresses", len(set(addresses)), len(addresses))
        self.expect_served([*range(self.PODS), *numbers])
        self.remove(old)
        self.expect_served(numbers)
        host.use_plugins(self.before)
        self.remove(new)


def main(only, _plugins):
    """Runs the cases of all networks, in both directions."""
    host.use_plugins(OURS)
    host.make_outside()
    containerd = Containerd()
    suite = Suite(only, "containerd", containerd.version)
    containerd.start()
    containerd.import_image()
    client = Client()
    # Not with nftables: the reference's own DEL fails beside a command of iptables that knows nothing of its chains.
    for name, network in {"install-cni": networks.installed(), "chain": networks.chain()}.items():
        others = {host.package_version("containernetworking-plugins"): "/usr/lib/cni"}
        others[os.environ["REFERENCE_VERSION"]] = "/plugins/reference"
        for version, other in others.items():
            to_ours = Exchange(containerd, client, network, other, OURS)
            to_other = Exchange(containerd, client, network, OURS, other)
            suite.case(f"{name}: {version}'s pods, CHECK by ours", to_ours.check)
            suite.case(f"{name}: {version}'s pods, DEL by ours", to_ours.delete)
            suite.case(f"{name}: {version}'s pods beside ours", to_ours.beside)
            # With two families, 1.1.1 does not find its own ports right either.
            if version != "1.1.1":
                suite.case(f"{name}: our pods, CHECK by {version}", to_other.check)
            suite.case(f"{name}: our pods, DEL by {version}", to_other.delete)
        if not suite.wanted():
            continue
        containerd.use_network(network)
        for plugins in OURS, *others.values():
            # All make what pods share.
            host.use_plugins(plugins)
            warm_up = Exchange(containerd, client, network, plugins, plugins)
            warm_up.remove(warm_up.start([0]))
        traces = host.Traces()

        def after_each(traces=traces, network=network):
            containerd.remove_all_pods()
            # The others know nothing of our records.
            host.collect(OURS, network)
            traces.expect_none()

        suite.run(after_each)
    containerd.stop()
    suite.end()


main(*sys.argv[1:])
