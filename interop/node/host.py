"""The host of the sandbox: commands, links, what is outside of it, the plugins, and what is left behind."""

import contextlib
import json
import os
import pathlib
import subprocess

from node.suite import Failed, eventually, expect, timed

PLUGINS = "/opt/cni/bin"
NETWORKS = "/etc/cni/net.d"
# The host's addresses on its uplink, and those of the machine at the other end, which has no route to any pod.
HOST_V4, OUTSIDE_V4 = "203.0.113.1", "203.0.113.2"
HOST_V6, OUTSIDE_V6 = "2001:db8::1", "2001:db8::2"
OUTSIDE = "/run/netns/outside"

# What a web server says of itself and of whom it talks to.
_PEER = """#!/bin/sh
echo 'Content-Type: text/plain'
echo
echo "$(hostname) $REMOTE_ADDR"
"""


def run(*command, seconds=60, text=None, env=None, check=True):
    """What a command has printed to stdout; fails with what it said if it fails, unless `check` is false."""
    try:
        with timed(" ".join(command)):
            done = subprocess.run(command, input=text, env=env, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as expired:
        raise Failed(f"{' '.join(command)}: no end after {seconds} s") from expired
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(command)}: status {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def write(path, text, mode=0o644):
    """Writes a file, and the directories above it."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def web(root=""):
    """Puts what web servers serve under a root: /www."""
    write(f"{root}/www/cgi-bin/peer", _PEER, 0o755)


def make_outside():
    """Makes the uplink and the machine outside, which has a web server."""
    run("ip", "netns", "add", "outside")
    run("ip", "link", "add", "uplink0", "type", "veth", "peer", "name", "eth0", "netns", "outside")
    run("ip", "addr", "add", f"{HOST_V4}/24", "dev", "uplink0")
    run("ip", "addr", "add", f"{HOST_V6}/64", "dev", "uplink0", "nodad")
    run("ip", "link", "set", "uplink0", "up")
    run("ip", "-n", "outside", "addr", "add", f"{OUTSIDE_V4}/24", "dev", "eth0")
    run("ip", "-n", "outside", "addr", "add", f"{OUTSIDE_V6}/64", "dev", "eth0", "nodad")
    run("ip", "-n", "outside", "link", "set", "lo", "up")
    run("ip", "-n", "outside", "link", "set", "eth0", "up")
    run("ip", "route", "add", "default", "via", OUTSIDE_V4)
    run("ip", "route", "add", "default", "via", OUTSIDE_V6)
    web()
    subprocess.Popen(inside(OUTSIDE, "busybox", "httpd", "-f", "-p", "80", "-h", "/www"))


def inside(namespace, *command):
    """The command, in a network namespace, which is a path; the host's own if empty."""
    return ("nsenter", f"--net={namespace}", *command) if namespace else command


@contextlib.contextmanager
def namespace(name):
    """A network namespace with a web server in it, as a path. Both end with the `with`."""
    run("ip", "netns", "add", name)
    path = f"/run/netns/{name}"
    with subprocess.Popen(inside(path, "busybox", "httpd", "-f", "-p", "80", "-h", "/www")) as server:
        try:
            yield path
        finally:
            server.kill()
            server.wait()
            # A case may have done so already.
            run("ip", "netns", "delete", name, check=False)


def url(address, port):
    """Where a web server at an address of either family tells whom it talks to."""
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}/cgi-bin/peer"


def ask(namespace, address, port):
    """Whom a web server says it is, and with whom it talks: two words. For some seconds it may not answer: an IPv6
    address of a bridge that has just been made is first tried for duplicates."""

    def once():
        # The wget of Debian 12's busybox crashes if it is given a time limit of its own.
        return run("timeout", "1.5", *inside(namespace, "busybox", "wget", "-q", "-O", "-", url(address, port)))

    return said(eventually(once, seconds=10))


def said(page):
    """The two words of a web server's page; IPv4 addresses as they are written outside of IPv6."""
    name, peer = page.split()
    return name, peer.strip("[]").removeprefix("::ffff:")


def is_refused(namespace, address, port):
    """Whether nothing at an address answers."""
    try:
        run("timeout", "1", *inside(namespace, "busybox", "wget", "-q", "-O", "-", url(address, port)))
    except Failed:
        return True
    return False


# Answers each datagram with what it was; an address of IPv6 serves both families.
_UDP_SERVER = """
import socket, sys
server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
server.bind(("::", int(sys.argv[1])))
print(flush=True)
while True:
    server.sendto(*server.recvfrom(100))
"""
_UDP_CLIENT = """
import socket, sys
address, port = sys.argv[1:]
client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(1)
client.connect((address, int(port)))
client.send(b"hello")
sys.exit(client.recv(100) != b"hello")
"""


@contextlib.contextmanager
def udp_server(namespace, port):
    """A server of UDP in a namespace, which answers what it is told. Busybox has none."""
    command = inside(namespace, "python3", "-c", _UDP_SERVER, str(port))
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            server.stdout.readline()
            yield
        finally:
            server.kill()


def expect_udp(namespace, address, port):
    """Fails unless such a server answers at an address."""
    eventually(lambda: run(*inside(namespace, "python3", "-c", _UDP_CLIENT, address, str(port))))


def links(namespace=""):
    """The links of a namespace by name, as `ip -json` tells them."""
    found = json.loads(run(*inside(namespace, "ip", "-json", "-details", "address", "show")))
    return {link["ifname"]: link for link in found}


def addresses(namespace, link="eth0"):
    """The global addresses of a link, IPv4 first."""
    found = links(namespace)
    expect(link in found, f"there is no {link} in {namespace}, but {sorted(found)}")
    infos = [info for info in found[link]["addr_info"] if info["scope"] == "global"]
    return [info["local"] for info in sorted(infos, key=lambda info: info["family"])]


def host_end(namespace, link="eth0"):
    """The host's end of a veth in a namespace."""
    number = links(namespace)[link]["link_index"]
    return next(name for name, found in links().items() if found["ifindex"] == number)


def use_plugins(directory):
    """Has runtimes find the plugins of a directory from now on. There is no moment without any."""
    os.makedirs(PLUGINS, exist_ok=True)
    run("mount", "--bind", directory, PLUGINS)


def package_version(package):
    """The upstream version of an installed package."""
    return run("dpkg-query", "--show", "--showformat=${Version}", package).split("+")[0].split("-")[0]


def collect(plugins, network):
    """Has our GC look for what belongs to no pod, with nothing but the kernel's word for who is alive."""
    for one in network, {"name": "cni-loopback", "plugins": [{"type": "loopback"}]}:
        write(f"/tmp/gc/{one['name']}.conflist", json.dumps(one | {"cniVersion": "1.1.0"}))
        run(f"{plugins}/bridgehead", "gc", one["name"], "--net-dir", "/tmp/gc", "--plugin-dir", plugins)


def write_network(network, file="10-network.conflist"):
    """Replaces all networks by one. Runtimes that watch the directory notice a rename within it."""
    os.makedirs(NETWORKS, exist_ok=True)
    for old in os.listdir(NETWORKS):
        if old != file:
            os.unlink(f"{NETWORKS}/{old}")
    aside = f"{NETWORKS}/{file}.new"
    write(aside, json.dumps(network, indent=4))
    os.rename(aside, f"{NETWORKS}/{file}")


def snapshot():
    """All that an attachment could leave: links, rules of both kinds, qdiscs, files, namespaces; a line each."""
    found = [f"link {name}" for name in links()]
    found += [f"qdisc {line}" for line in run("tc", "qdisc", "show").splitlines() if "noqueue" not in line]
    for save in "iptables-save", "ip6tables-save":
        rules = run(save, check=False).splitlines()
        found += [f"{save} {line}" for line in rules if line[:1] not in "#:"]
    table = ""
    for line in run("nft", "-s", "list", "ruleset").splitlines():
        table = line if line.startswith("table") else table
        if not line.lstrip().startswith("#"):
            found.append(f"nft {table} {line.strip()}")
    for directory in "/var/lib/cni", "/run/bridgehead", "/run/netns", "/run/cni":
        for parent, _, names in os.walk(directory):
            # Locks are as good as none; the index of reservations is made again whenever it does not fit; and which
            # address was given last stays when a network is gone, as with the reference.
            if not parent.startswith(("/run/bridgehead/ipam", "/run/bridgehead/bridges")):
                names = [name for name in names if name != "lock" and not name.startswith("last_reserved_ip.")]
                found += [f"file {parent}/{name}" for name in names]
    return set(found)


class Traces:
    """What is on the host when no pod is, after a first one has made what pods share."""

    # What is said of many.
    LINES = 12

    def __init__(self):
        self.before = snapshot()

    def expect_none(self):
        """Fails with what is left, or lost, if that is not over within some seconds: kernel and runtimes take theirs."""

        def compare():
            now = snapshot()
            lines = [f"left: {line}" for line in sorted(now - self.before)]
            lines += [f"lost: {line}" for line in sorted(self.before - now)]
            more = [f"and {len(lines) - self.LINES} more"] if len(lines) > self.LINES else []
            expect(not lines, "\n".join(lines[: self.LINES] + more))

        try:
            eventually(compare)
        finally:
            # It is not the fault of the next case.
            self.before = snapshot()
