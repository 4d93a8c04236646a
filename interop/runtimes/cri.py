"""containerd as a kubelet uses it, by CRI. Arguments: filter of cases, directory of plugins."""

import concurrent.futures
import ipaddress
import json
import os
import signal
import sys
import time

from node import host, image, networks
from node.containerd import Containerd
from node.cri import NOTREADY, READY, TCP, UDP, Refused
from node.suite import Failed, Skipped, Suite, eventually, expect, expect_equal

# The ports of a pod, by TCP and UDP, and once at a single address of the host.
PORTS = [(TCP, 80, 8080, ""), (UDP, 9000, 9000, ""), (TCP, 80, 8081, host.HOST_V4)]
RATES = {"kubernetes.io/ingress-bandwidth": "16M", "kubernetes.io/egress-bandwidth": "8M"}


def subnets(network):
    """The subnets of a network's ranges."""
    ipam = network["plugins"][0]["ipam"]
    ranges = ipam.get("ranges") or [[{"subnet": ipam["subnet"]}]]
    return [ipaddress.ip_network(group[0]["subnet"]) for group in ranges]


class Pod:
    """A pod that is removed at the end of a `with`, as a kubelet does: Stop, then Remove."""

    def __init__(self, cri, name, ports=(), annotations=None):
        self._cri = cri
        self.name = name
        self.id = cri.run_pod(name, ports, annotations)
        status = cri.pod(self.id)
        # IPv4 first.
        self.addresses = sorted(status["addresses"], key=lambda address: ":" in address)
        self.namespace = status["namespace"]
        self.state = status["state"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.remove()

    def remove(self):
        """Stops and removes it."""
        self._cri.stop_pod(self.id)
        expect_equal("state of a stopped pod", self._cri.pod(self.id)["state"], NOTREADY)
        self._cri.remove_pod(self.id)

    def container(self):
        """A container that does nothing, to execute commands in."""
        return self._cri.start_container(self.id, self.name, image.NAME, ["sleep", "1000"])


class OnNetwork:
    """The cases of one network."""

    def __init__(self, containerd, network):
        self.cri = containerd.cri
        self.containerd = containerd
        self.network = network

    def types(self):
        """The plugins of the network."""
        return [plugin["type"] for plugin in self.network["plugins"]]

    def status(self):
        """Addresses as the runtime tells them, as the pod has them, and out of the ranges."""
        with Pod(self.cri, "status", PORTS, RATES) as pod:
            expect_equal("state", pod.state, READY)
            expect_equal("number of addresses", len(pod.addresses), len(subnets(self.network)))
            for address, subnet in zip(pod.addresses, subnets(self.network)):
                expect(ipaddress.ip_address(address) in subnet, address, "is not in", subnet)
            expect_equal("addresses of the pod", host.addresses(pod.namespace), pod.addresses)
            expect("UP" in host.links(pod.namespace)["lo"]["flags"], "lo of the pod is down")

    def execute(self):
        """A container in the pod, and what is executed in it, have the pod's network."""
        with Pod(self.cri, "execute") as pod:
            container = pod.container()
            output = self.cri.execute(container, "ip", "-o", "address", "show", "dev", "eth0")
            for address in pod.addresses:
                expect(f" {address}/" in output, address, "is not in:", output)
            expect_equal("host name", self.cri.execute(container, "hostname").strip(), "execute")

    def ports(self):
        """Ports of the host lead to the pod: from outside, the host, another pod and, with hairpinMode, from itself."""
        with Pod(self.cri, "ports", PORTS) as pod, Pod(self.cri, "other") as other:
            for at, outside in (host.HOST_V4, host.OUTSIDE_V4), (host.HOST_V6, host.OUTSIDE_V6):
                expect_equal(f"from outside to {at}", host.ask(host.OUTSIDE, at, 8080), (pod.name, outside))
                with host.udp_server(pod.namespace, 9000):
                    host.expect_udp(host.OUTSIDE, at, 9000)
                origins = {"the host": "", "another pod": other.namespace}
                # Where bridges have their packets filtered by iptables, a port does not send back what it has received.
                if self.network["plugins"][0].get("hairpinMode"):
                    origins["itself"] = pod.namespace
                for name, origin in origins.items():
                    expect_equal(f"from {name} to {at}", host.ask(origin, at, 8080)[0], pod.name)
            expect_equal("from the host to localhost", host.ask("", "127.0.0.1", 8080)[0], pod.name)
            expect_equal("to the port with an address", host.ask(host.OUTSIDE, host.HOST_V4, 8081)[0], pod.name)
            expect(host.is_refused("", "127.0.0.1", 8081), "the port of one address answers at another")
        expect(host.is_refused(host.OUTSIDE, host.HOST_V4, 8080), "the port answers after the pod is gone")

    def outside(self):
        """What leaves the pod has the address of the host."""
        with Pod(self.cri, "outside") as pod:
            container = pod.container()
            for at, seen in (host.OUTSIDE_V4, host.HOST_V4), (host.OUTSIDE_V6, host.HOST_V6):
                page = eventually(lambda: self.cri.execute(container, "wget", "-q", "-O", "-", host.url(at, 80)))
                expect_equal(f"what {at} sees", host.said(page)[1], seen)

    def pods(self):
        """Pods talk to each other without any translation."""
        with Pod(self.cri, "a") as a, Pod(self.cri, "b") as b:
            for of_a, of_b in zip(a.addresses, b.addresses):
                expect_equal("from a to b", host.ask(a.namespace, of_b, 80), ("b", of_a))
                expect_equal("from b to a", host.ask(b.namespace, of_a, 80), ("a", of_b))

    def rates(self):
        """Both directions have the limits of the annotations."""
        if not {"bandwidth", "bridgehead"} & set(self.types()):
            raise Skipped("no plugin of this network has limits")
        with Pod(self.cri, "rates", (), RATES) as pod:
            qdiscs = json.loads(host.run("tc", "-json", "qdisc", "show"))
            found = {qdisc["dev"]: qdisc["options"]["rate"] * 8 for qdisc in qdiscs if qdisc["kind"] == "tbf"}
            end = host.host_end(pod.namespace)
            # Whoever cannot limit what is received does it on a link of its own.
            expect_equal("limit of what the pod receives", found.pop(end, None), 16_000_000)
            expect_equal("limit of what the pod sends", list(found.values()), [8_000_000])

    def sysctl(self):
        """The sysctls of the network are the pod's."""
        if not {"tuning", "bridgehead"} & set(self.types()):
            raise Skipped("no plugin of this network sets any")
        with Pod(self.cri, "sysctl") as pod:
            value = host.run(*host.inside(pod.namespace, "cat", "/proc/sys/net/core/somaxconn"))
            expect_equal("net.core.somaxconn", value.strip(), "512")

    def crowd(self):
        """Twenty pods at once, each with a port and addresses of its own; twenty go at once."""
        with concurrent.futures.ThreadPoolExecutor(20) as at_once:
            pods = list(
                at_once.map(lambda n: Pod(self.cri, f"crowd-{n}", [(TCP, 80, 9100 + n, "")], RATES), range(20))
            )
            addresses = [address for pod in pods for address in pod.addresses]
            expect_equal("number of different addresses", len(set(addresses)), 20 * len(subnets(self.network)))
            for number, pod in enumerate(pods):
                expect_equal("port", host.ask(host.OUTSIDE, host.HOST_V4, 9100 + number)[0], pod.name)
            list(at_once.map(Pod.remove, pods))

    def dead(self):
        """The pod's processes and its namespace are gone before the kubelet stops it."""
        pod = Pod(self.cri, "dead", PORTS, RATES)
        os.kill(self.cri.pod(pod.id)["pid"], signal.SIGKILL)
        eventually(lambda: expect_equal("state of a dead pod", self.cri.pod(pod.id)["state"], NOTREADY))
        name = os.path.basename(pod.namespace)
        host.run("umount", "-l", pod.namespace)
        os.unlink(f"/run/netns/{name}")
        pod.remove()

    def taken(self):
        """A port that another pod has is refused with the name of its owner, nothing of the second pod stays, and
        the first keeps its port."""
        with Pod(self.cri, "first", PORTS) as first:
            before = host.snapshot()
            try:
                second = Pod(self.cri, "second", PORTS)
            except Refused as refused:
                expect(first.id in str(refused), "the owner is not named:", refused)
            else:
                second.remove()
                raise Failed("two pods have the same port of the host")
            eventually(lambda: expect_equal("what the second has left", host.snapshot() - before, set()))
            expect_equal("port", host.ask(host.OUTSIDE, host.HOST_V4, 8080)[0], "first")
        for pod in self.cri.pods():
            self.cri.remove_pod(pod)

    def restarted(self):
        """containerd is restarted, and killed and started again, while a pod runs."""
        pod = Pod(self.cri, "restarted", PORTS, RATES)
        for end in self.containerd.stop, self.containerd.crash:
            end()
            self.containerd.start()
            self.cri = self.containerd.cri
            expect_equal("addresses", self.cri.pod(pod.id)["addresses"], pod.addresses)
            expect_equal("port", host.ask(host.OUTSIDE, host.HOST_V4, 8080)[0], pod.name)
        self.cri.stop_pod(pod.id)
        self.cri.remove_pod(pod.id)

    def killed(self):
        """containerd is killed while it starts pods. Those that it knows then are removed; GC takes what others had."""
        with concurrent.futures.ThreadPoolExecutor(10) as at_once:
            run = self.cri.run_pod
            starts = [at_once.submit(run, f"killed-{n}", [(TCP, 80, 9200 + n, "")], RATES) for n in range(10)]
            time.sleep(0.25)
            self.containerd.crash()
            for start in starts:
                # What became of it, nobody is told.
                start.exception()
        self.containerd.start()
        self.cri = self.containerd.cri
        self.containerd.remove_all_pods()
        # It forgets a namespace that it had no time to write down, and what is in there.
        for name in os.listdir("/run/netns"):
            if name.startswith("cni-"):
                host.run("ip", "netns", "delete", name)
        if os.path.exists(f"{host.PLUGINS}/bridgehead"):
            host.collect(host.PLUGINS, self.network)
        with Pod(self.cri, "after", [(TCP, 80, 9200, "")], RATES):
            expect_equal("port", host.ask(host.OUTSIDE, host.HOST_V4, 9200)[0], "after")

    def all(self):
        """The cases by name."""
        return {
            "status": self.status,
            "execute": self.execute,
            "ports": self.ports,
            "outside": self.outside,
            "pod to pod": self.pods,
            "rates": self.rates,
            "sysctl": self.sysctl,
            "20 at once": self.crowd,
            "dead pod": self.dead,
            "port is taken": self.taken,
            "restart": self.restarted,
            "killed while it starts pods": self.killed,
        }


class OnSmallNetwork:
    """STATUS, which containerd calls since 2.1 whenever a kubelet asks for its status."""

    def __init__(self, containerd):
        self.containerd = containerd
        self.cri = containerd.cri

    def ready(self):
        """NetworkReady with its message."""
        is_so, _, message = self.cri.status()[0]["NetworkReady"]
        return is_so, message

    def expect_not_ready(self, *words):
        """Fails unless the kubelet is told that there is no network, with the plugin's words."""
        is_so, message = self.ready()
        expect(not is_so, "NetworkReady is true")
        for word in words:
            expect(word in message, f"{word!r} is not in the message:", message)

    def exhausted(self):
        """No address is left: the kubelet is told so, with figures, until one is free again."""
        with Pod(self.cri, "only"):
            self.expect_not_ready("1 of 1 addresses are taken")
            try:
                second = self.cri.run_pod("second")
            except Refused as refused:
                expect("1 of 1 addresses are taken" in str(refused), "no figures in:", refused)
            else:
                raise Failed(f"there is an address for {second}")
        expect_equal("NetworkReady", self.ready(), (True, ""))

    def down(self):
        """The bridge is down, by somebody's mistake."""
        with Pod(self.cri, "down"):
            host.run("ip", "link", "set", "small0", "down")
            self.expect_not_ready("small0")
            host.run("ip", "link", "set", "small0", "up")

    def all(self):
        """The cases by name."""
        return {"no address is left": self.exhausted, "bridge is down": self.down}


def run_cases(suite, containerd, network, cases):
    """Runs cases on a network, after a pod that makes what pods share."""
    for case, body in cases.items():
        suite.case(case, body)
    if not suite.wanted():
        return
    containerd.use_network(network)
    Pod(containerd.cri, "warm-up", PORTS, RATES).remove()
    traces = host.Traces()

    def after_each():
        containerd.remove_all_pods()
        traces.expect_none()

    suite.run(after_each)


def main(only, plugins):
    """Runs the cases of all networks."""
    host.use_plugins(plugins)
    host.make_outside()
    containerd = Containerd()
    suite = Suite(only, "containerd", containerd.version)
    containerd.start()
    containerd.import_image()
    for name, network in networks.for_containerd(plugins, containerd.cni_version).items():
        cases = OnNetwork(containerd, network).all()
        run_cases(suite, containerd, network, {f"{name}: {case}": body for case, body in cases.items()})
    if containerd.cni_version == "1.1.0":
        cases = OnSmallNetwork(containerd).all()
        run_cases(suite, containerd, networks.small("1.1.0"), {f"STATUS: {case}": cases[case] for case in cases})
    containerd.stop()
    suite.end()


main(*sys.argv[1:])
