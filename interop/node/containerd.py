"""The daemon of containerd, 1.6 or 2.x."""

import os
import subprocess
import time

from node import host, image
from node.cri import Cri
from node.suite import Failed, eventually, expect

SOCKET = "/run/containerd/containerd.sock"
_LOG = "/run/containerd.log"

# A node in namespaces may not lower what the kernel's out-of-memory killer thinks of a process.
_CONFIGURATION = {
    "1": f"""
version = 2
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image.NAME}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{host.PLUGINS}"
conf_dir = "{host.NETWORKS}"
""",
    "2": f"""
version = 3
[grpc]
address = "{SOCKET}"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{image.NAME}"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{host.PLUGINS}"]
conf_dir = "{host.NETWORKS}"
""",
}


class Containerd:
    """A containerd that runs until it is stopped."""

    def __init__(self):
        self.version = host.run("containerd", "--version").split()[2].split("~")[0].split("+")[0]
        host.write("/etc/containerd/interop.toml", _CONFIGURATION[self.version.split(".")[0]])
        self._daemon = None
        self.cri = None

    @property
    def cni_version(self):
        """The newest version of CNI that it speaks. Since 2.1 it calls STATUS."""
        return "1.1.0" if [int(part) for part in self.version.split(".")[:2]] >= [2, 1] else "1.0.0"

    def start(self):
        """Starts it, and waits until it answers."""
        log = os.open(_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._daemon = subprocess.Popen(["containerd", "-c", "/etc/containerd/interop.toml"], stdout=log, stderr=log)
        os.close(log)
        self.cri = Cri(SOCKET)

        def answers():
            expect(self._daemon.poll() is None, "containerd has ended:", self.errors())
            return self.cri.version()

        eventually(answers, seconds=30)

    def import_image(self):
        """Gives it the image of pods, for ctr and for CRI."""
        image.archive("/tmp/pod.tar")
        for namespace in "default", "k8s.io":
            host.run("ctr", "-n", namespace, "images", "import", "/tmp/pod.tar")
        eventually(lambda: expect(self.cri.has_image(image.NAME), "CRI does not see the image"), seconds=20)

    def use_network(self, network):
        """Makes a network the only one, and waits until it is loaded."""
        host.write_network(network)

        def loaded():
            names = self.cri.status()[1]
            expect(network["name"] in names, f"the network {network['name']} is not loaded, but {names}")

        eventually(loaded, seconds=10)

    def stop(self):
        """Ends it, as a service manager does. Pods go on."""
        self.cri.close()
        self._daemon.terminate()
        try:
            self._daemon.wait(20)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()
            raise Failed("containerd has not ended within 20 s") from None

    def crash(self):
        """Kills it. Pods go on."""
        self.cri.close()
        self._daemon.kill()
        self._daemon.wait()

    def remove_all_pods(self):
        """Removes whatever sandboxes there are, for the next case; errors are of no interest then."""
        for pod in self.cri.pods():
            for call in self.cri.stop_pod, self.cri.remove_pod:
                try:
                    call(pod)
                except Failed:
                    time.sleep(0.1)

    @staticmethod
    def errors():
        """The end of what it has logged as wrong."""
        with open(_LOG, encoding="utf-8", errors="replace") as log:
            lines = [line for line in log if "level=error" in line or "level=fatal" in line]
        return "".join(lines[-5:])
