"""How long a pod takes from RunPodSandbox to ready, with our plugins and with the reference's, in turns. Nothing is
asserted but that the pods come up. Arguments: filter of cases, directory of plugins."""

import concurrent.futures
import statistics
import sys
import time

from node import host, networks
from node.containerd import Containerd
from node.cri import TCP
from node.suite import Suite

OURS, REFERENCE = "/plugins/ours", "/plugins/reference"
RATES = {"kubernetes.io/ingress-bandwidth": "32M", "kubernetes.io/egress-bandwidth": "16M"}
ROUNDS = 2
ONE_BY_ONE, AT_ONCE = 5, 20


class Times:
    """What was measured, in milliseconds, by network, plugins and deed."""

    def __init__(self, containerd):
        self.cri = containerd.cri
        self.measured = {}

    def note(self, key, deed, since):
        """Notes how long ago something began."""
        self.measured.setdefault((*key, deed), []).append((time.monotonic() - since) * 1000)

    def start(self, key, deed, number):
        """A pod with a port, from the call to its answer, which is when it is ready."""
        since = time.monotonic()
        pod = self.cri.run_pod(f"times-{number}", [(TCP, 80, 8500 + number, "")], RATES)
        self.note(key, deed, since)
        return pod

    def remove(self, key, deed, pod):
        """Stop and Remove."""
        since = time.monotonic()
        self.cri.stop_pod(pod)
        self.cri.remove_pod(pod)
        self.note(key, deed, since)

    def round(self, key):
        """Pods one after the other, then all at once."""
        for number in range(ONE_BY_ONE):
            self.remove(key, "Stop, Remove: 1", self.start(key, "Run: 1", number))
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as at_once:
            deed = f"Run: {AT_ONCE} at once"
            pods = list(at_once.map(lambda number: self.start(key, deed, number), range(AT_ONCE)))
            deed = f"Stop, Remove: {AT_ONCE} at once"
            list(at_once.map(lambda pod: self.remove(key, deed, pod), pods))

    def table(self):
        """Medians."""
        lines = [f"{'median in milliseconds':42} {'bridgehead':>10} {'reference':>10} {'ratio':>6}"]
        keys = sorted({(network, deed) for network, _, deed in self.measured})
        for network, deed in keys:
            ours, reference = (
                statistics.median(self.measured[network, plugins, deed])
                if (network, plugins, deed) in self.measured else None
                for plugins in (OURS, REFERENCE)
            )
            line = f"{network + ': ' + deed:42} {ours:10.0f}"
            if reference is not None:
                line += f" {reference:10.0f} {reference / ours:6.1f}"
            lines.append(line)
        return "\n".join(lines)


def measure(suite, containerd):
    """A chain with both in turns, and what it is as one entry."""
    times = Times(containerd)
    version = containerd.cni_version
    for network, directories in (networks.chain(version), [OURS, REFERENCE]), (networks.one_entry(version), [OURS]):
        containerd.use_network(network)
        for plugins in directories:
            # What pods share is made before.
            host.use_plugins(plugins)
            pod = containerd.cri.run_pod("warm-up", [(TCP, 80, 8500, "")], RATES)
            containerd.cri.stop_pod(pod)
            containerd.cri.remove_pod(pod)
        for turn in range(ROUNDS):
            for plugins in directories[:: 1 if turn % 2 else -1]:
                host.use_plugins(plugins)
                times.round((network["name"], plugins))
    suite.say(times.table())


def main(only, _plugins):
    """Measures, and prints a table."""
    host.use_plugins(OURS)
    host.make_outside()
    containerd = Containerd()
    suite = Suite(only, "containerd", containerd.version, seconds_per_case=500)
    containerd.start()
    containerd.import_image()
    suite.case("all pods come up", measure, suite, containerd)
    suite.run(containerd.remove_all_pods)
    containerd.stop()
    suite.end()


main(*sys.argv[1:])
