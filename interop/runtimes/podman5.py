"""podman with netavark, whose plugin `bridgehead` is, under both firewall drivers. Arguments: filter of cases, directory of
plugins. What podman sends is in its own hands here; what becomes of packets is looked at from outside."""

import concurrent.futures
import json
import os
import sys

from node import host, image
from node.suite import Failed, Suite, eventually, expect, expect_equal

# Where netavark looks for plugins, if nobody says otherwise.
NETAVARK = "/usr/lib/netavark"
V4, V6 = "10.90.0.0/24", "fd90::/64"


def podman(*words, check=True):
    """What podman prints."""
    return host.run("podman", *words, env=os.environ | {"PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}, check=check)


def refusal(*words):
    """What podman says where it must fail."""
    try:
        output = podman(*words)
    except Failed as failure:
        return str(failure)
    raise Failed(f"podman {' '.join(words)} has succeeded: {output}")


def configure(driver):
    """Has podman do without systemd, and use a firewall driver from now on."""
    host.write(
        "/etc/containers/containers.conf",
        f"""[network]
network_backend = "netavark"
firewall_driver = "{driver}"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
[containers]
log_driver = "k8s-file"
""",
    )
    host.write(
        "/etc/containers/storage.conf",
        '[storage]\ndriver = "overlay"\nrunroot = "/run/containers/storage"\ngraphroot = "/var/lib/containers/storage"\n',
    )


def network(name, *options, subnets=(V4, V6)):
    """Makes a network, and gives what podman knows of it."""
    words = [word for subnet in subnets for word in ("--subnet", subnet)]
    podman("network", "create", "-d", "bridgehead", *words, *options, name)
    return json.loads(podman("network", "inspect", name))[0]


class Server:
    """A web server in a container."""

    def __init__(self, name, *options):
        self.name = name
        podman("run", "-d", "--name", name, "--hostname", name, *options, image.NAME)

    def inspect(self):
        """What podman knows of its network settings."""
        return json.loads(podman("inspect", self.name))[0]["NetworkSettings"]

    def namespace(self):
        """Its network namespace."""
        return self.inspect()["SandboxKey"]

    def addresses(self, link="eth0"):
        """The addresses of an interface of it, IPv4 first."""
        return host.addresses(self.namespace(), link)

    def expect_published(self, port):
        """It answers at a port of the host, in both families, and sees who asks."""
        for at, peer in (host.HOST_V4, host.OUTSIDE_V4), (host.HOST_V6, host.OUTSIDE_V6):
            expect_equal(f"who answers at {at}, and whom it sees", host.ask(host.OUTSIDE, at, port), (self.name, peer))
        expect_equal("who answers at 127.0.0.1", host.ask("", "127.0.0.1", port)[0], self.name)


def create():
    """A network is what its user asked for, and what is missing is chosen."""
    made = network("chosen", "-o", "mtu=1400", "--label", "a=b", subnets=())
    expect_equal("driver", made["driver"], "bridgehead")
    expect_equal("option", made["options"], {"mtu": "1400"})
    expect_equal("label", made["labels"], {"a": "b"})
    expect(made["network_interface"] and made["subnets"][0]["gateway"], "no bridge or no gateway:", made)
    subnet = made["subnets"][0]["subnet"]
    text = refusal("network", "create", "-d", "bridgehead", "--subnet", subnet, "again")
    expect(f"{subnet} has addresses in common with" in text, text)
    both = network("both", "--ipv6", subnets=())
    expect_equal("number of subnets", len(both["subnets"]), 2)
    expect(both["subnets"][0]["subnet"] != subnet, "a subnet was given twice:", subnet)
    text = refusal("network", "create", "-d", "bridgehead", "-o", "vrf=red", "wrong")
    expect("options.vrf: there is no such option" in text, text)


def ports():
    """Published ports lead to the container, and what it sends has the host's address."""
    network("web")
    www = Server("www", "--network", "web", "-p", "8080:80")
    www.expect_published(8080)
    for at, seen in (host.OUTSIDE_V4, host.HOST_V4), (host.OUTSIDE_V6, host.HOST_V6):
        expect_equal(f"whom {at} sees", host.ask(www.namespace(), at, 80)[1], seen)
    expect(str(www.addresses()[0]) in podman("exec", "www", "cat", "/etc/hosts"), "its address is not in /etc/hosts")
    podman("rm", "-f", "-t", "0", "www")
    expect(host.is_refused(host.OUTSIDE, host.HOST_V4, 8080), "somebody still answers")


def datagrams():
    """A range of UDP ports of one address of the host."""
    network("web")
    www = Server("www", "--network", "web", "-p", f"{host.HOST_V4}:5000-5004:6000-6004/udp")
    with host.udp_server(www.namespace(), 6003):
        host.expect_udp(host.OUTSIDE, host.HOST_V4, 5003)


def fixed():
    """Address and MAC address are those that were asked for."""
    network("web")
    mac = "02:00:00:00:00:99"
    www = Server("www", "--network", "web", "--ip", "10.90.0.77", "--ip6", "fd90::77", "--mac-address", mac)
    expect_equal("addresses", [str(it) for it in www.addresses()], ["10.90.0.77", "fd90::77"])
    known = www.inspect()["Networks"]["web"]
    expect_equal("what podman knows", (known["IPAddress"], known["MacAddress"]), ("10.90.0.77", mac))
    expect(mac in host.run(*host.inside(www.namespace(), "ip", "link", "show", "eth0")), "another MAC address")


def two_networks():
    """A container on two networks is reached by both, and its port works; it can leave one and come back."""
    network("web")
    network("back", subnets=("10.91.0.0/24",))
    www = Server("www", "--network", "web", "--network", "back", "-p", "8080:80")
    other = Server("other", "--network", "back")
    www.expect_published(8080)
    # podman gives interfaces their names in no order.
    at_back = www.inspect()["Networks"]["back"]["IPAddress"]
    expect_equal("over the second network", host.ask(other.namespace(), at_back, 80)[0], "www")
    podman("network", "disconnect", "back", "www")
    expect(host.is_refused(other.namespace(), at_back, 80), "it is still reached over the network that it has left")
    www.expect_published(8080)
    podman("network", "connect", "--ip", "10.91.0.99", "back", "www")
    expect_equal("over the second network", host.ask(other.namespace(), "10.91.0.99", 80)[0], "www")


def walls():
    """Isolated networks do not reach each other; an internal one leads nowhere."""
    network("one", "-o", "isolate=true", subnets=("10.92.0.0/24",))
    network("two", "-o", "isolate=true", subnets=("10.93.0.0/24",))
    network("inner", "--internal", subnets=("10.94.0.0/24",))
    one, two = Server("one", "--network", "one"), Server("two", "--network", "two")
    inner, beside = Server("inner", "--network", "inner", "-p", "8081:80"), Server("beside", "--network", "inner")
    expect(host.is_refused(one.namespace(), two.addresses()[0], 80), "one isolated network reaches another")
    expect_equal("out of an isolated network", host.ask(one.namespace(), host.OUTSIDE_V4, 80)[1], host.HOST_V4)
    expect_equal("within the internal network", host.ask(beside.namespace(), inner.addresses()[0], 80)[0], "inner")
    expect(host.is_refused(inner.namespace(), host.OUTSIDE_V4, 80), "the internal network leads outside")
    expect(host.is_refused(host.OUTSIDE, host.HOST_V4, 8081), "the internal network has a port outside")


def again():
    """A container that is stopped, started, restarted and whose network is reloaded works every time."""
    network("web")
    www = Server("www", "--network", "web", "-p", "8080:80")
    for words in ("stop", "-t", "0"), ("start",), ("restart", "-t", "0"), ("network", "reload"):
        podman(*words, "www")
        if words[0] != "stop":
            www.expect_published(8080)


def crowd():
    """Ten come and go at once."""
    network("web")
    with concurrent.futures.ThreadPoolExecutor(10) as at_once:
        numbers = range(10)
        servers = list(at_once.map(lambda n: Server(f"w{n}", "--network", "web", "-p", f"{8100 + n}:80"), numbers))
        for number, server in zip(numbers, servers):
            expect_equal("who answers", host.ask(host.OUTSIDE, host.HOST_V4, 8100 + number)[0], server.name)
        list(at_once.map(lambda server: podman("rm", "-f", "-t", "0", server.name), servers))


def errors():
    """What is wrong is said by podman, and leaves nothing."""
    network("web")
    text = refusal("run", "--rm", "--network", "web:host_interface_name=x", image.NAME, "sh", "-c", "exit 0")
    expect("network_options.options.host_interface_name" in text, text)
    expect("veth" not in " ".join(host.links()), "there are links:", host.links())


def lost():
    """What is left where the namespace has vanished goes with the next container."""
    network("web")
    gone = Server("gone", "--network", "web", "-p", "8080:80")
    namespace = gone.namespace()
    podman("kill", "gone", check=False)
    host.run("umount", "-l", namespace, check=False)
    host.run("rm", "-f", namespace)
    podman("rm", "-f", "-t", "0", "gone", check=False)
    podman("rm", "-f", "-t", "0", "gone", check=False)
    Server("www", "--network", "web", "-p", "8080:80").expect_published(8080)


def networks_of_the_day():
    """Networks that come and go leave nothing, whatever subnets they are given."""
    for number in range(3):
        network(f"day{number}", "--ipv6", subnets=())
        Server(f"www{number}", "--network", f"day{number}", "-p", "8080:80")
        podman("network", "rm", "-f", "-t", "0", f"day{number}")


CASES = {
    "network create": create,
    "published ports": ports,
    "datagrams": datagrams,
    "fixed address": fixed,
    "two networks": two_networks,
    "isolated, internal": walls,
    "stop, start, reload": again,
    "ten at once": crowd,
    "errors": errors,
    "namespace lost": lost,
    "networks come and go": networks_of_the_day,
}


def remove_all():
    """Removes containers and networks, also those of a failed case."""
    podman("rm", "-f", "-a", "-t", "0", check=False)
    for name in podman("network", "ls", "-q", "--filter", "driver=bridgehead").split():
        podman("network", "rm", "-f", "-t", "0", name, check=False)


def main(only, plugins):
    """Runs the cases under each firewall driver."""
    host.use_plugins(plugins)
    host.make_outside()
    suite = Suite(only, "podman", f"{host.package_version('podman')} with netavark {host.package_version('netavark')}")
    if not os.path.exists(f"{plugins}/bridgehead"):
        suite.end()
    os.makedirs(NETAVARK, exist_ok=True)
    os.symlink(f"{host.PLUGINS}/bridgehead", f"{NETAVARK}/bridgehead")
    image.archive("/tmp/image.tar")
    for driver in "nftables", "iptables":
        for name, body in CASES.items():
            suite.case(f"{driver}: {name}", body)
        if not suite.wanted():
            continue
        configure(driver)
        podman("load", "-q", "-i", "/tmp/image.tar")
        # They make what containers share.
        network("warm", "-o", "isolate=true")
        Server("warm", "--network", "warm", "-p", "7000:80", "-p", "7000:80/udp")
        remove_all()
        traces = host.Traces()

        def after_each(traces=traces):
            remove_all()
            traces.expect_none()

        suite.run(after_each)
    suite.end()


main(*sys.argv[1:])
