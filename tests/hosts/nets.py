"""Hosts as network namespaces, in a private world that nobody else on the machine sees.

The world is a mount, a network and a process namespace of its own: names and addresses in it meet
no others, and when its first process ends, whatever it was, the kernel ends and removes all of it.
Where users may make namespaces it needs no root.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from functools import cache

from tests.hosts.weather import Weather, tap

PRIVATE = ("--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")

TRIAL = "mount -t tmpfs none /run && ip link add lan type bridge && ip netns add trial"

PROGRAMS = {"unshare": "util-linux", "ip": "iproute2", "bridge": "iproute2"}

NETWORK = "10.77.0"


class NotAllowed(Exception):
    """This machine makes no private worlds; the message says why."""


@cache
def private_world() -> tuple[str, ...]:
    """The start of a command that runs in a private world: as root is, else as a mapped user.

    Raises:
        NotAllowed: neither works here.
    """
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise NotAllowed(f"{program} is not installed: apt-get install {package}")
    said = ""
    for mapped in ((), ("--map-root-user",)):
        command = ("unshare", *mapped, *PRIVATE)
        tried = subprocess.run(
            [*command, "sh", "-c", TRIAL], capture_output=True, text=True, check=False
        )
        if tried.returncode == 0:
            return command
        said = tried.stderr.strip()
    raise NotAllowed(
        f"this machine does not let us make network namespaces ({said}): it takes root with "
        "CAP_SYS_ADMIN, or unprivileged user namespaces (kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns)"
    )


@dataclass(frozen=True, slots=True)
class Host:
    """A host on the lan."""

    name: str
    address: str

    @property
    def inside(self) -> tuple[str, ...]:
        """The start of a command that runs on it."""
        return ("ip", "netns", "exec", self.name)


class Lan:
    """A switch, and hosts that are made as they are asked for; only in a private world."""

    def __init__(self) -> None:
        self._hosts: dict[str, Host] = {}
        _do("mount -t tmpfs none /run")  # where `ip netns` keeps names
        _do("ip link set lo up")
        _do("ip link add lan type bridge")
        _do("ip link set lan up")
        _do(f"ip address add {NETWORK}.1/24 dev lan")

    def host(self, name: str) -> Host:
        """The host of that name."""
        if name not in self._hosts:
            address = f"{NETWORK}.{10 + len(self._hosts)}"
            _do(f"ip netns add {name}")
            _do(f"ip link add {name} type veth peer name eth0 netns {name}")
            _do(f"ip link set {name} master lan up")
            _do(f"ip -n {name} address add {address}/24 dev eth0")
            _do(f"ip -n {name} link set eth0 up")
            _do(f"ip -n {name} link set lo up")
            self._hosts[name] = Host(name, address)
        return self._hosts[name]

    def weather(self, host: Host) -> Weather:
        """From now on its frames go through ours; calm at first. Before anything runs on it."""
        _do(f"ip link del {host.name}")
        outside, inside = tap(host.name), tap("inside")
        _do(f"ip link set {host.name} master lan up")
        _do(f"ip link set inside netns {host.name} name eth0")
        _do(f"ip -n {host.name} address add {host.address}/24 dev eth0")
        _do(f"ip -n {host.name} link set eth0 up")
        weather = Weather(inside, outside)
        weather.start()
        return weather

    def cut(self, host: Host) -> None:
        """Packets from and to it vanish; neither side is told."""
        _do(f"bridge link set dev {host.name} state 0")

    def heal(self, host: Host) -> None:
        """They pass again."""
        _do(f"bridge link set dev {host.name} state 3")

    def unroute(self, one: Host, other: Host) -> None:
        """Drop all that one sends to the other."""
        _do(f"ip -n {one.name} route add blackhole {other.address}")

    def reroute(self, one: Host, other: Host) -> None:
        """It arrives again."""
        _do(f"ip -n {one.name} route del blackhole {other.address}")


def _do(command: str) -> None:
    subprocess.run(command.split(), check=True)
