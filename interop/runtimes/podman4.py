"""podman 4 with its CNI back end, which writes networks itself and asks every plugin for its versions each time.
Arguments: filter of cases, directory of plugins."""

import concurrent.futures
import json
import os
import sys

from node import host, image
from node.suite import Failed, Suite, eventually, expect, expect_equal

_CONTAINERS = f"""
[network]
network_backend = "cni"
cni_plugin_dirs = ["{host.PLUGINS}"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
[containers]
log_driver = "k8s-file"
"""
_STORAGE = """
[storage]
driver = "overlay"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
"""


def podman(*words):
    """What podman prints."""
    return host.run("podman", *words).strip()


def expect_refused(*words):
    """Fails unless podman does; what it says then."""
    try:
        podman(*words)
    except Failed as failure:
        return str(failure)
    raise Failed(f"podman {' '.join(words)} has succeeded")


class Container:
    """A web server in a container of a network, removed at the end of a `with`."""

    def __init__(self, name, *options):
        self.name = name
        podman("run", "--detach", "--name", name, "--hostname", name, *options, image.NAME)
        self.namespace = self.inspect()["SandboxKey"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.remove()

    def inspect(self):
        """Its network settings."""
        return json.loads(podman("inspect", self.name))[0]["NetworkSettings"]

    def addresses(self, network):
        """Its addresses in a network, as podman tells them."""
        found = self.inspect()["Networks"][network]
        return [address for address in (found["IPAddress"], found["GlobalIPv6Address"]) if address]

    def remove(self):
        """Removes it."""
        podman("rm", "--force", "--time", "0", self.name)


def run():
    """Containers of a network of two families talk to each other and to the outside."""
    with Container("a", "--network", "one") as a, Container("b", "--network", "one") as b:
        for of_a, of_b in zip(a.addresses("one"), b.addresses("one")):
            expect_equal("from a to b", host.ask(a.namespace, of_b, 80), ("b", of_a))
            expect_equal("from b to a", host.ask(b.namespace, of_a, 80), ("a", of_b))
        expect_equal("addresses", host.addresses(a.namespace), a.addresses("one"))
        for at, seen in (host.OUTSIDE_V4, host.HOST_V4), (host.OUTSIDE_V6, host.HOST_V6):
            expect_equal(f"what {at} sees", host.ask(a.namespace, at, 80)[1], seen)


def ports():
    """Published ports lead to the container: of all addresses, of one, by UDP, and a range."""
    published = ["8080:80", f"{host.HOST_V4}:8081:80", "9000:9000/udp", "8090-8092:80-82"]
    options = [word for port in published for word in ("--publish", port)]
    with Container("ports", "--network", "one", *options) as container, Container("other", "--network", "one") as other:
        for port in 8080, 8081, 8090:
            expect_equal(f"port {port}", host.ask(host.OUTSIDE, host.HOST_V4, port)[0], "ports")
        expect_equal("from another container", host.ask(other.namespace, host.HOST_V4, 8080)[0], "ports")
        expect_equal("from itself", host.ask(container.namespace, host.HOST_V4, 8080)[0], "ports")
        expect_equal("from localhost", host.ask("", "127.0.0.1", 8080)[0], "ports")
        with host.udp_server(container.namespace, 9000):
            host.expect_udp(host.OUTSIDE, host.HOST_V4, 9000)
    expect(host.is_refused(host.OUTSIDE, host.HOST_V4, 8080), "the port answers after the container is gone")


def connect():
    """A container joins a second network and leaves the first, while it runs."""
    with Container("joins", "--network", "one") as container, Container("peer", "--network", "two") as peer:
        podman("network", "connect", "two", "joins")
        expect_equal("links", sorted(host.links(container.namespace)), ["eth0", "eth1", "lo"])
        expect_equal("addresses of eth1", host.addresses(container.namespace, "eth1"), container.addresses("two"))
        expect_equal("from the new network", host.ask(peer.namespace, container.addresses("two")[0], 80)[0], "joins")
        podman("network", "disconnect", "one", "joins")
        expect_equal("links", sorted(host.links(container.namespace)), ["eth1", "lo"])
        expect_equal("from the new network", host.ask(peer.namespace, container.addresses("two")[0], 80)[0], "joins")


def fixed():
    """Addresses and MAC that are asked for; an address that is taken is refused and says whose it is."""
    fixed_v4, fixed_mac = "10.81.0.50", "02:00:00:00:00:99"
    with Container("fixed", "--network", "one", "--ip", fixed_v4, "--mac-address", fixed_mac) as container:
        expect_equal("address", container.addresses("one")[0], fixed_v4)
        expect_equal("addresses", host.addresses(container.namespace), container.addresses("one"))
        expect_equal("MAC", host.links(container.namespace)["eth0"]["address"], fixed_mac)
        said = expect_refused("run", "--rm", "--network", "one", "--ip", fixed_v4, image.NAME, "sleep", "0")
        expect(fixed_v4 in said, "the address is not named:", said)
    with Container("both", "--network", "one", "--ip", fixed_v4, "--ip6", "fd81::50") as container:
        expect_equal("addresses", host.addresses(container.namespace), [fixed_v4, "fd81::50"])


def isolate():
    """Isolated networks do not reach each other; their containers reach neighbours and the outside."""
    with Container("a", "--network", "apart-1") as a, Container("b", "--network", "apart-1") as b, \
            Container("c", "--network", "apart-2") as c:
        expect_equal("neighbour", host.ask(a.namespace, b.addresses("apart-1")[0], 80)[0], "b")
        expect(host.is_refused(a.namespace, c.addresses("apart-2")[0], 80), "a reaches c")
        expect(host.is_refused(c.namespace, a.addresses("apart-1")[0], 80), "c reaches a")
        expect_equal("what the outside sees", host.ask(a.namespace, host.OUTSIDE_V4, 80)[1], host.HOST_V4)


def reload():
    """After all rules were flushed, `network reload` brings back masquerade and ports, with the same addresses."""
    with Container("reload", "--network", "one", "--publish", "8080:80") as container:
        addresses, mac = host.addresses(container.namespace), host.links(container.namespace)["eth0"]["address"]
        host.run("nft", "flush", "ruleset")
        expect(host.is_refused(host.OUTSIDE, host.HOST_V4, 8080), "the port answers without rules")
        podman("network", "reload", "--all")
        expect_equal("port", host.ask(host.OUTSIDE, host.HOST_V4, 8080)[0], "reload")
        expect_equal("addresses", host.addresses(container.namespace), addresses)
        expect_equal("MAC", host.links(container.namespace)["eth0"]["address"], mac)
        expect_equal("what the outside sees", host.ask(container.namespace, host.OUTSIDE_V4, 80)[1], host.HOST_V4)
    # What those networks share that had no container.
    warm_up()


def warm_up():
    """A container in each network makes what its containers share."""
    for network in "one", "two", "apart-1", "apart-2":
        Container("warm-up", "--network", network, "--publish", "8080:80", "--publish", "9000:9000/udp").remove()


def stop_and_start():
    """A container that is stopped has nothing, and is the same again when it is started."""
    with Container("again", "--network", "one", "--publish", "8080:80") as container:
        podman("stop", "--time", "0", "again")
        expect(host.is_refused(host.OUTSIDE, host.HOST_V4, 8080), "the port answers though the container has stopped")
        podman("start", "again")
        expect_equal("port", host.ask(host.OUTSIDE, host.HOST_V4, 8080)[0], "again")
        expect(container.addresses("one"), "there are no addresses")


def crowd():
    """Eight at once."""
    words = ["run", "--rm", "--network", "one", image.NAME]
    words += ["ip", "-o", "address", "show", "dev", "eth0", "scope", "global"]
    with concurrent.futures.ThreadPoolExecutor(8) as at_once:
        outputs = list(at_once.map(lambda _: podman(*words), range(8)))
    for output in outputs:
        expect_equal("number of addresses", len(output.splitlines()), 2)


def lost(plugins):
    """podman sends no DEL for a namespace that is gone. The port is the next one's nevertheless; GC takes the rest."""
    options = ["--network", "one", "--ip", "10.81.0.60", "--publish", "8080:80"]
    container = Container("lost", *options)
    host.run("umount", "-l", container.namespace)
    os.unlink(container.namespace)
    podman("kill", "lost")
    host.run("podman", "rm", "--force", "--time", "0", "lost", check=False)
    with Container("next", "--network", "one", "--publish", "8080:80"):
        expect_equal("port", host.ask(host.OUTSIDE, host.HOST_V4, 8080)[0], "next")
        if os.path.exists(f"{plugins}/bridgehead"):
            host.run(f"{plugins}/bridgehead", "gc", "one")
            expect_equal("port", host.ask(host.OUTSIDE, host.HOST_V4, 8080)[0], "next")


def networks_come_and_go():
    """A network with keys of its own; it is refused to be removed while it is in use."""
    podman("network", "create", "--opt", "mtu=1400", "--gateway", "10.85.0.254", "--subnet", "10.85.0.0/24", "own")
    with Container("user", "--network", "own") as container:
        expect_equal("MTU", host.links(container.namespace)["eth0"]["mtu"], 1400)
        routes = json.loads(host.run(*host.inside(container.namespace, "ip", "-json", "route", "show", "default")))
        expect_equal("gateway", [route["gateway"] for route in routes], ["10.85.0.254"])
        expect_refused("network", "rm", "own")
    podman("network", "rm", "own")
    expect("own" not in podman("network", "ls", "--format", "{{.Name}}").split(), "the network is still there")


def main(only, plugins):
    """Makes the networks, and runs all cases."""
    host.use_plugins(plugins)
    host.make_outside()
    host.write("/etc/containers/containers.conf", _CONTAINERS)
    host.write("/etc/containers/storage.conf", _STORAGE)
    suite = Suite(only, "podman", podman("--version").split()[-1])
    image.archive("/tmp/pod.tar")
    podman("load", "--input", "/tmp/pod.tar")
    podman("network", "create", "--ipv6", "--subnet", "10.81.0.0/24", "--subnet", "fd81::/64", "one")
    podman("network", "create", "--subnet", "10.82.0.0/24", "two")
    podman("network", "create", "--opt", "isolate=true", "--subnet", "10.83.0.0/24", "apart-1")
    podman("network", "create", "--opt", "isolate=true", "--subnet", "10.84.0.0/24", "apart-2")
    suite.case("run", run)
    suite.case("ports", ports)
    suite.case("connect, disconnect", connect)
    suite.case("fixed address and MAC", fixed)
    suite.case("isolate", isolate)
    suite.case("stop and start", stop_and_start)
    suite.case("8 at once", crowd)
    suite.case("network create, rm", networks_come_and_go)
    suite.case("network reload", reload)
    suite.case("namespace is lost", lost, plugins)
    if suite.wanted():
        warm_up()
        suite.run(host.Traces().expect_none)
    suite.end()


main(*sys.argv[1:])
