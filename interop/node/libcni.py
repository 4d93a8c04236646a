"""A client of libcni, by which CHECK, GC and STATUS can be called: runtimes of Debian hardly do."""

import json
import os
import shutil
import subprocess

from node import host
from node.suite import Failed

# Where Debian has the library's source.
_SOURCES = "/usr/share/gocode/src"
_RESULTS = "/var/lib/cni/results"


class Refusal(Failed):
    """The error that a plugin or libcni has told, with its code if it is a plugin's."""

    def __init__(self, words, answer):
        super().__init__(f"{' '.join(words)}: {json.dumps(answer)}")
        self.code = answer.get("code")
        self.text = f"{answer.get('msg', '')} {answer.get('details', '')}"


class Client:
    """The client, built for the release's version of libcni."""

    PROGRAM = "/cache/client"

    def __init__(self):
        self.version = host.package_version("golang-github-appc-cni-dev")
        # What there has been since 1.2.
        self.has_status = [int(part) for part in self.version.split(".")[:2]] >= [1, 2]
        environment = {
            "PATH": os.environ["PATH"], "GOCACHE": "/cache/go", "GOPATH": os.path.dirname(_SOURCES),
            "GO111MODULE": "off", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0",
        }
        # Go takes the files of one directory.
        shutil.copytree("/interop/libcni", "/tmp/client", dirs_exist_ok=True)
        tags = ["-tags", "cni_1_1"] if self.has_status else []
        built = subprocess.run(
            ["go", "build", *tags, "-o", self.PROGRAM, "."],
            cwd="/tmp/client", env=environment, capture_output=True, text=True, timeout=300,
        )
        if built.returncode != 0:
            raise Failed(f"go build: {built.stdout}{built.stderr}")

    def call(self, *words, capabilities=None, arguments=""):
        """What a verb answers; `None` if it succeeds with no answer."""
        environment = os.environ | {"CAP_ARGS": json.dumps(capabilities or {}), "CNI_ARGS": arguments}
        try:
            done = subprocess.run(
                [self.PROGRAM, *words], env=environment, capture_output=True, text=True, timeout=60
            )
        except subprocess.TimeoutExpired as expired:
            raise Failed(f"{' '.join(words)}: no end after 60 s") from expired
        answer = json.loads(done.stdout) if done.stdout.strip() else None
        if done.returncode != 0:
            raise Refusal(words, answer or {"msg": done.stderr})
        return answer

    def check(self, network, namespace, container):
        """CHECK of what a runtime has added, with what the runtime gave to the plugins then."""
        with open(f"{_RESULTS}/{network}-{container}-eth0", encoding="utf-8") as file:
            kept = json.load(file)
        capabilities = kept.get("capabilityArgs")
        arguments = ";".join("=".join(pair) for pair in kept.get("cniArgs") or [])
        self.call("check", network, namespace, container, capabilities=capabilities, arguments=arguments)
