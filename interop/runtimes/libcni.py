"""libcni itself, called by a client as runtimes call it, and mixed with our tool on one cache of results. Arguments:
filter of cases, directory of plugins."""

import concurrent.futures
import contextlib
import glob
import json
import os
import sys

from node import host, networks
from node.libcni import Client, Refusal
from node.suite import Failed, Suite, expect, expect_equal

OURS = "/plugins/ours"
# An ADD could not be served now.
UNAVAILABLE = 50


def capabilities(port):
    """A port of the host, and limits."""
    return {
        "portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 16000000, "ingressBurst": 1600000, "egressRate": 8000000, "egressBurst": 800000},
    }


class OnNetwork:
    """The cases of one network."""

    def __init__(self, client, network, plugins):
        self.client = client
        self.network = network["name"]
        self.plugins = plugins

    def add(self, path, container, port=8300):
        """ADD: the result."""
        return self.client.call("add", self.network, path, container, capabilities=capabilities(port))

    def delete(self, path, container, port=8300):
        """DEL, with what ADD had."""
        self.client.call("del", self.network, path, container, capabilities=capabilities(port))

    @contextlib.contextmanager
    def attached(self, name, port=8300):
        """A namespace that is attached, and detached at the end."""
        with host.namespace(name) as path:
            self.add(path, name, port)
            try:
                yield path
            finally:
                self.delete(path, name, port)

    def tool(self, verb, path, container):
        """What our tool says."""
        words = [verb, self.network, path, "--container-id", container]
        environment = os.environ | {"CAP_ARGS": json.dumps(capabilities(8300))}
        return host.run(f"{OURS}/bridgehead", *words, env=environment)

    def verbs(self):
        """ADD, CHECK and DEL; the result is what there is."""
        with host.namespace("verbs") as path:
            result = self.add(path, "verbs")
            addresses = [ip["address"].split("/")[0] for ip in result["ips"]]
            expect_equal("addresses", host.addresses(path), addresses)
            own = next(link for link in result["interfaces"] if link.get("sandbox") == path)
            expect_equal("MAC", host.links(path)["eth0"]["address"], own["mac"])
            self.client.check(self.network, path, "verbs")
            host.ask(host.OUTSIDE, host.HOST_V4, 8300)
            self.delete(path, "verbs")
            expect("eth0" not in host.links(path), "eth0 is there after DEL")
            # Runtimes that are not sure call again, also when the namespace is gone.
            self.delete(path, "verbs")
            self.delete("", "verbs")

    def again(self):
        """ADD that is repeated gives the same result."""
        with self.attached("again") as path:
            first = self.add(path, "again")
            expect_equal("second result", self.add(path, "again"), first)

    def drift(self):
        """CHECK names what is not as ADD left it."""
        with self.attached("drift") as path:
            host.run(*host.inside(path, "ip", "route", "delete", "default"))
            try:
                self.client.check(self.network, path, "drift")
            except Refusal as refusal:
                expect("route" in refusal.text.lower(), "it is not said to be a route:", refusal)
            else:
                raise Failed("CHECK does not notice that a route is gone")

    def crowd(self):
        """Sixteen at once, in each verb."""
        names = [f"crowd-{number}" for number in range(16)]
        paths = [f"/run/netns/{name}" for name in names]
        ports = range(8400, 8416)
        for name in names:
            host.run("ip", "netns", "add", name)
        try:
            with concurrent.futures.ThreadPoolExecutor(16) as at_once:
                results = list(at_once.map(self.add, paths, names, ports))
                addresses = [ip["address"] for result in results for ip in result["ips"]]
                expect_equal("number of different addresses", len(set(addresses)), 32)
                list(at_once.map(lambda n, p: self.client.check(self.network, p, n), names, paths))
                list(at_once.map(self.delete, paths, names, ports))
        finally:
            for name in names:
                host.run("ip", "netns", "delete", name)

    def tool_goes_on(self):
        """What libcni has added is checked and removed by the tool."""
        with host.namespace("tool") as path:
            self.add(path, "tool")
            self.tool("check", path, "tool")
            self.tool("del", path, "tool")
            expect("eth0" not in host.links(path), "eth0 is there after DEL")

    def tool_begins(self):
        """What the tool has added is checked and removed by libcni."""
        with host.namespace("tool") as path:
            self.tool("add", path, "tool")
            self.client.check(self.network, path, "tool")
            self.delete(path, "tool")
            expect("eth0" not in host.links(path), "eth0 is there after DEL")

    def validate(self):
        """All plugins speak the network's version."""
        self.client.call("validate", self.network)

    def status(self):
        """STATUS has nothing to say."""
        self.client.call("status", self.network)

    def gc(self):
        """GC removes what no valid attachment has, also what libcni has forgotten, and nothing else."""
        with self.attached("valid", 8301) as path:
            before = host.snapshot()
            with host.namespace("known") as known, host.namespace("forgotten") as forgotten:
                self.add(known, "known", 8302)
                self.add(forgotten, "forgotten", 8303)
                for file in glob.glob("/var/lib/cni/results/*forgotten*"):
                    os.unlink(file)
                self.client.call("gc", self.network, "valid/eth0")
                for gone in known, forgotten:
                    expect("eth0" not in host.links(gone), f"{gone} has its eth0 after GC")
            expect_equal("what GC has left", host.snapshot() - before, set())
            self.client.check(self.network, path, "valid")
            host.ask(host.OUTSIDE, host.HOST_V4, 8301)
        self.client.call("gc", self.network)

    def all(self):
        """The cases by name."""
        cases = {
            "ADD, CHECK, DEL": self.verbs,
            "ADD again": self.again,
            "drift": self.drift,
            "16 at once": self.crowd,
            "validate": self.validate,
        }
        if self.plugins == OURS:
            cases |= {"tool after libcni": self.tool_goes_on, "libcni after tool": self.tool_begins}
        if self.client.has_status:
            cases |= {"STATUS": self.status, "GC": self.gc}
        return cases


def exhausted(client):
    """STATUS says that no address is left, and an ADD says so too."""
    with host.namespace("first") as path, host.namespace("second") as other:
        client.call("add", "small", path, "first")
        try:
            client.call("status", "small")
        except Refusal as refusal:
            expect_equal("code", refusal.code, UNAVAILABLE)
        else:
            raise Failed("STATUS says nothing")
        try:
            client.call("add", "small", other, "second")
        except Refusal as refusal:
            expect("1 of 1 addresses are taken" in refusal.text, "no figures in:", refusal)
        else:
            raise Failed("there is an address for a second one")
        client.call("del", "small", path, "first")
        client.call("status", "small")


def main(only, plugins):
    """Runs the cases of all networks."""
    host.use_plugins(plugins)
    host.make_outside()
    client = Client()
    suite = Suite(only, "libcni", client.version)
    version = "1.1.0" if client.has_status else "1.0.0"
    candidates = {"chain": networks.chain(version)}
    if os.path.exists(f"{plugins}/bridgehead"):
        candidates["one entry"] = networks.one_entry(version)
    for name, network in candidates.items():
        cases = OnNetwork(client, network, plugins)
        for case, body in cases.all().items():
            suite.case(f"{name}: {case}", body)
        if suite.wanted():
            host.write_network(network)
            with cases.attached("warm-up"):
                pass
            suite.run(host.Traces().expect_none)
    if client.has_status:
        suite.case("small: STATUS, no address is left", exhausted, client)
        if suite.wanted():
            host.write_network(networks.small(version))
            with host.namespace("warm-up") as path:
                client.call("add", "small", path, "warm-up")
                client.call("del", "small", path, "warm-up")
            suite.run(host.Traces().expect_none)
    suite.end()


main(*sys.argv[1:])
