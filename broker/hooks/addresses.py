"""Addresses that hooks may reach: public ones, and those that the setting allows.

An address is judged when it is connected to, so a name that changes its address (DNS rebinding)
gains nothing.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, TypeAlias

SETTING: Final = "GPU_BROKER_HOOKS_ALLOW"

HOST: Final = re.compile(r"(?=.*[a-z_-])[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE)

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

METADATA: Final = {ipaddress.ip_address("168.63.129.16")}
"""Public addresses by which a cloud's machines reach its own services: Azure's."""

NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

NOT_PUBLIC: Final = tuple(
    ipaddress.ip_network(each) for each in ("192.0.0.0/24", "64:ff9b:1::/48", "fec0::/10", "::/96")
)
"""Networks of their site or of a protocol that Python, or one before 3.12.4, takes for global."""


class AddressRefused(OSError):
    """Refusal of an address; the message has the way out."""


class Addresses:
    """Rule for addresses.

    Args:
        allowed: networks as 10.0.0.0/8, addresses, and names of hosts, separated by commas.

    Raises:
        ValueError: a part is none of these.
    """

    def __init__(self, allowed: str = "") -> None:
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._hosts: set[str] = set()
        for part in filter(None, (each.strip() for each in allowed.split(","))):
            try:
                self._networks.append(ipaddress.ip_network(part))
            except ValueError:
                if not HOST.fullmatch(part):
                    raise ValueError(f"{part} is no network as 10.0.0.0/8 and no host") from None
                self._hosts.add(part.lower())

    def check(self, host: str, address: str) -> None:
        """Refuse an address that is neither public nor allowed.

        Args:
            host: the name by which it was asked for.
            address: one of its addresses.

        Raises:
            AddressRefused: nothing may be sent there.
        """
        reached = _reached(ipaddress.ip_address(address.partition("%")[0]))
        if host.rstrip(".").lower() in self._hosts or any(reached in net for net in self._networks):
            return
        inside = reached in METADATA or any(reached in net for net in NOT_PUBLIC)
        if inside or not reached.is_global or reached.is_multicast:
            raise AddressRefused(
                f"{reached} is no public address, and hooks go to no other: {SETTING} allows more"
            )


def _reached(address: Address) -> Address:
    """Return the IPv4 address inside an IPv6 one that leads to it."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour
    if address.teredo:
        inner = address.teredo[1]
    if address in NAT64:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return inner or address
