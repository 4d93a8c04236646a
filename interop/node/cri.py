"""The calls of the Container Runtime Interface, version 1, that a kubelet makes. Messages are written field by field, so
neither generated code nor a compiler of it is needed; the numbers are those of Kubernetes' cri-api, api.proto."""

import json

import grpc

from node.suite import Failed, timed

TCP, UDP = 0, 1
READY, NOTREADY = 0, 1


def encode(*fields):
    """A protobuf message of (number, value) pairs: text, bytes or an encoded message, or a whole number. A default is
    left out, as in protobuf."""
    message = b""
    for number, value in fields:
        if isinstance(value, str):
            value = value.encode()
        if isinstance(value, int):
            message += _varint(number << 3) + _varint(value) if value else b""
        else:
            message += _varint(number << 3 | 2) + _varint(len(value)) + value
    return message


def decode(message):
    """The values of a protobuf message by field number, in a list each: bytes or whole numbers."""
    fields = {}
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        if key & 7 == 0:
            value, at = _read_varint(message, at)
        elif key & 7 == 2:
            size, at = _read_varint(message, at)
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"protobuf wire type {key & 7}")
        fields.setdefault(key >> 3, []).append(value)
    return fields


def _varint(value):
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def _read_varint(message, at):
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _text(fields, number):
    return fields[number][0].decode() if number in fields else ""


def _map(fields, number):
    pairs = [decode(entry) for entry in fields.get(number, [])]
    return {_text(pair, 1): _text(pair, 2) for pair in pairs}


def _entries(number, pairs):
    return [(number, encode((1, key), (2, value))) for key, value in pairs.items()]


class Refused(Failed):
    """The runtime has answered with an error."""


class Cri:
    """A connection to a runtime's socket."""

    def __init__(self, socket, seconds=60):
        self._channel = grpc.insecure_channel(f"unix://{socket}")
        self._seconds = seconds

    def close(self):
        """Ends the connection."""
        self._channel.close()

    def _call(self, method, *fields, service="RuntimeService"):
        same = lambda message: message
        call = self._channel.unary_unary(f"/runtime.v1.{service}/{method}", same, same)
        try:
            with timed(method):
                return decode(call(encode(*fields), timeout=self._seconds, wait_for_ready=True))
        except grpc.RpcError as error:
            raise Refused(f"{method}: {error.details()}") from error

    def version(self):
        """The runtime's name and version."""
        answer = self._call("Version", (1, "0.1.0"))
        return f"{_text(answer, 2)} {_text(answer, 3)}"

    def has_image(self, name):
        """Whether there is an image of that name."""
        return 1 in self._call("ImageStatus", (1, encode((1, name))), service="ImageService")

    def status(self):
        """The conditions by type, each (is so, reason, message), and the names of the networks that are loaded."""
        answer = self._call("Status", (1, 1))
        conditions = {}
        for condition in decode(answer[1][0]).get(1, []):
            fields = decode(condition)
            conditions[_text(fields, 1)] = (2 in fields, _text(fields, 3), _text(fields, 4))
        loaded = json.loads(_map(answer, 2).get("cniconfig", "{}")).get("Networks") or []
        return conditions, [network["Config"]["Name"] for network in loaded]

    def run_pod(self, name, ports=(), annotations=None):
        """Starts a sandbox and returns its id. A port is (protocol, container's, host's, host's address)."""
        return _text(self._call("RunPodSandbox", (1, _pod(name, ports, annotations or {}))), 1)

    def pod(self, pod):
        """A sandbox as the runtime tells it: state, addresses, and the path of its network namespace."""
        answer = self._call("PodSandboxStatus", (1, pod), (2, 1))
        status = decode(answer[1][0])
        network = decode(status[5][0]) if 5 in status else {}
        others = [_text(decode(address), 1) for address in network.get(2, [])]
        info = json.loads(_map(answer, 2).get("info", "{}"))
        namespaces = info.get("runtimeSpec", {}).get("linux", {}).get("namespaces", [])
        path = next((space.get("path", "") for space in namespaces if space["type"] == "network"), "")
        addresses = [address for address in [_text(network, 1), *others] if address]
        return {"state": status.get(3, [READY])[0], "addresses": addresses, "namespace": path, "pid": info.get("pid")}

    def pods(self):
        """The ids of all sandboxes, running or not."""
        return [_text(decode(item), 1) for item in self._call("ListPodSandbox").get(1, [])]

    def stop_pod(self, pod):
        """Stops a sandbox."""
        self._call("StopPodSandbox", (1, pod))

    def remove_pod(self, pod):
        """Removes a sandbox."""
        self._call("RemovePodSandbox", (1, pod))

    def start_container(self, pod, name, image, command):
        """Creates a container in a sandbox made with that name, starts it and returns its id."""
        config = encode((1, encode((1, "main"))), (2, encode((1, image))), *((3, word) for word in command))
        answer = self._call("CreateContainer", (1, pod), (2, config), (3, _pod(name, (), {})))
        container = _text(answer, 1)
        self._call("StartContainer", (1, container))
        return container

    def execute(self, container, *command):
        """What a command in a container has printed; fails if it fails."""
        answer = self._call("ExecSync", (1, container), *((2, word) for word in command), (3, 20))
        output = _text(answer, 1)
        if answer.get(3, [0])[0] != 0:
            raise Failed(f"{' '.join(command)}: {output}{_text(answer, 2)}")
        return output


def _pod(name, ports, annotations):
    """PodSandboxConfig."""
    metadata = encode((1, name), (2, f"uid-{name}"), (3, "default"))
    mappings = [(5, encode((1, protocol), (2, inner), (3, outer), (4, at))) for protocol, inner, outer, at in ports]
    return encode((1, metadata), (2, name), *mappings, *_entries(7, annotations))
