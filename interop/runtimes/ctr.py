"""containerd by hand: `ctr run --cni`, which gives plugins neither arguments nor capabilities, and calls DEL without a
namespace. Arguments: filter of cases, directory of plugins."""

import concurrent.futures
import os
import signal
import subprocess
import sys

from node import host, image, networks
from node.containerd import Containerd
from node.suite import Failed, Suite, eventually, expect, expect_equal


def ctr(*words):
    """What ctr prints."""
    return host.run("ctr", *words)


def run_in_foreground(name, *command):
    """What a command prints in a container that lives as long as it does."""
    return ctr("run", "--rm", "--cni", image.NAME, name, *command)


class Server:
    """A web server in a container that runs in the foreground of a client, until the end of a `with`."""

    def __init__(self, name):
        self.name = name
        self.client = subprocess.Popen(["ctr", "run", "--rm", "--cni", image.NAME, name])

    def __enter__(self):
        self.namespace = f"/proc/{eventually(self.pid, seconds=20)}/ns/net"
        self.addresses = host.addresses(self.namespace)
        return self

    def __exit__(self, *_):
        try:
            self.kill()
            self.client.wait(20)
        except (Failed, subprocess.TimeoutExpired):
            self.client.kill()
            self.client.wait()
            raise

    def pid(self):
        """Its first process."""
        tasks = [line.split() for line in ctr("task", "list").splitlines()]
        found = [task[1] for task in tasks if task[0] == self.name and task[2] == "RUNNING"]
        expect(found, self.name, "does not run")
        return found[0]

    def kill(self):
        """Ends it, which its client notices."""
        ctr("task", "kill", "--signal", "SIGKILL", self.name)


class OnNetwork:
    """The cases of one network."""

    def __init__(self, network):
        self.families = len(network["plugins"][0]["ipam"]["ranges"])

    def run(self):
        """A container has addresses, and what leaves it has the host's."""
        output = run_in_foreground("run", "ip", "-o", "address", "show", "dev", "eth0", "scope", "global")
        expect_equal("number of addresses", len(output.splitlines()), self.families)
        for at, seen in (host.OUTSIDE_V4, host.HOST_V4), (host.OUTSIDE_V6, host.HOST_V6):
            page = eventually(lambda: run_in_foreground("run", "wget", "-q", "-O", "-", host.url(at, 80)))
            expect_equal(f"what {at} sees", host.said(page)[1], seen)

    def pods(self):
        """Containers talk to each other, and are the host's neighbours."""
        with Server("a") as a, Server("b") as b:
            for of_a, of_b in zip(a.addresses, b.addresses):
                expect_equal("from a to b", host.ask(a.namespace, of_b, 80)[1], of_a)
                expect_equal("from b to a", host.ask(b.namespace, of_a, 80)[1], of_b)
                host.ask("", of_a, 80)

    def crowd(self):
        """Eight at once have different addresses."""
        with concurrent.futures.ThreadPoolExecutor(8) as at_once:
            command = ("ip", "-o", "address", "show", "dev", "eth0", "scope", "global")
            outputs = at_once.map(lambda n: run_in_foreground(f"crowd-{n}", *command), range(8))
            addresses = [line.split()[3] for output in outputs for line in output.splitlines()]
        expect_equal("number of addresses", len(addresses), 8 * self.families)

    def fails(self):
        """A command that is not there, and one that fails."""
        for command in (["no-such-program"], ["sh", "-c", "exit 3"]):
            try:
                run_in_foreground("fails", *command)
            except Failed:
                continue
            raise Failed(f"{command} has succeeded")

    def all(self):
        """The cases by name."""
        return {"run": self.run, "pod to pod": self.pods, "8 at once": self.crowd, "command fails": self.fails}


def remove_all():
    """Removes what a failed case has left."""
    for line in ctr("task", "list", "-q").split():
        host.run("ctr", "task", "kill", "--signal", "SIGKILL", line, check=False)
        host.run("ctr", "task", "delete", "-f", line, check=False)
    for line in ctr("container", "list", "-q").split():
        host.run("ctr", "container", "delete", line, check=False)


def main(only, plugins):
    """Runs the cases of all networks."""
    host.use_plugins(plugins)
    host.make_outside()
    containerd = Containerd()
    suite = Suite(only, "containerd", containerd.version)
    containerd.start()
    containerd.import_image()
    for name, network in networks.for_containerd(plugins, containerd.cni_version).items():
        for case, body in OnNetwork(network).all().items():
            suite.case(f"{name}: {case}", body)
        if not suite.wanted():
            continue
        containerd.use_network(network)
        # It makes what containers share.
        run_in_foreground("warm-up", "sleep", "0")
        traces = host.Traces()

        def after_each(traces=traces):
            remove_all()
            traces.expect_none()

        suite.run(after_each)
    containerd.stop()
    suite.end()


main(*sys.argv[1:])
