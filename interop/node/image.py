"""An image made here, since there is no registry: busybox, and a web server on port 80."""

import hashlib
import io
import json
import os
import pathlib
import tarfile
import tempfile

from node import host

NAME = "docker.io/library/pod:1"
SERVE = ["httpd", "-f", "-p", "80", "-h", "/www"]
_COMMANDS = "cat hostname httpd ip ping ping6 sh sleep wget".split()


def archive(path):
    """Writes the image as an archive that `docker save` could have made."""
    with tempfile.TemporaryDirectory() as root:
        busybox = pathlib.Path(root, "bin/busybox")
        busybox.parent.mkdir()
        busybox.write_bytes(pathlib.Path("/bin/busybox").read_bytes())
        busybox.chmod(0o755)
        for command in _COMMANDS:
            os.symlink("busybox", f"{root}/bin/{command}")
        host.web(root)
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            tar.add(root, arcname=".")
    config = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
            "os": "linux",
            "config": {"Cmd": SERVE, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
        }
    ).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [NAME], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(path, "w") as tar:
        for file, content in (name, config), ("layer.tar", layer.getvalue()), ("manifest.json", manifest):
            entry = tarfile.TarInfo(file)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
