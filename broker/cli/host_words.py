"""Trouble and warnings of hosts, in the words of the commands."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from broker.cli.finding import Diagnosis, Severity
from broker.text.screen import one_line
from broker.text.table import age

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_sdk.state.snapshot import HostStatus


def said_of(host: HostStatus, now_ms: int) -> list[str]:
    """Return the lines about one host that reports: why its GPUs are not seen, and its warning."""
    since = f" (for {age(now_ms - host.trouble_since_ms)})" if host.trouble_since_ms else ""
    lines = [f"{host.host} does not see its GPUs{since}: {host.trouble}"] if host.trouble else []
    return lines + ([f"{host.host} warns: {host.warning}"] if host.warning else [])


def notes_on_hosts(hosts: Iterable[HostStatus], now_ms: int, width: int | None) -> list[str]:
    """Return the lines about all hosts that report, as one part of a picture, or none."""
    alive = [host for host in hosts if host.alive(now_ms)]
    lines = [one_line(line) for host in alive for line in said_of(host, now_ms)]
    if width is not None:
        lines = [textwrap.fill(line, width, subsequent_indent="  ") for line in lines]
    return ["\n".join(lines)] if lines else []


def troubles(hosts: Iterable[HostStatus], now_ms: int) -> list[Diagnosis]:
    """Return a finding for each host that reports and does not see its GPUs, or warns."""
    alive = [host for host in hosts if host.alive(now_ms)]
    return [
        Diagnosis(
            f"host {host.host} does not see its GPUs: {host.trouble}",
            "mend what it says; gpu-broker doctor on that host asks its driver again",
        )
        for host in alive
        if host.trouble
    ] + [
        Diagnosis(
            f"host {host.host} warns: {host.warning}",
            "its GPUs are read all the same",
            Severity.NOTE,
        )
        for host in alive
        if host.warning
    ]
