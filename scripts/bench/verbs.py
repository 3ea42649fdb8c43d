"""Costs of a lease, beside its alternatives: server time, client time and memory.

Every figure that is compared with another comes from the same rounds: a round takes one sample of
everything, then the next round does, so that a noisy neighbour disturbs all alike. Figures are
medians over rounds; ratios are medians of each round's ratio. The first round warms up.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import crowd
from bench import (
    HOST,
    HOST_DEVICES,
    KEYS,
    LEASE_VERBS,
    PLACES,
    PLAIN,
    VERB_CALLS,
    WAYS,
    Footprint,
    Pool,
    ask,
    command,
    lease_costs,
    placed,
    report_of,
    running_store,
    server_us,
    weigh,
)
from verbs_report import Goal, LevelCost, PairCost, Results, VerbCalls, VerbCost, markdown

from agent_sdk import LeaseClient
from agent_sdk.protocol.lease import MOST_AT_ONCE, reap, release, renew_call, renew_many_call
from agent_sdk.protocol.messages import new_token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_sdk.protocol.messages import Call

Key = tuple[str, str]
"""A thing measured: a group, and a verb or a client in it."""

Samples = dict[Key, list[float]]

MANY = f"{MOST_AT_ONCE} leases"
"""Group of the renewals of one process with so many leases."""

QUIET = "report, quiet"
"""Report of a host on whose devices nothing changed, as its reporter sends it."""

VERBS = (*LEASE_VERBS, "reap", "report", QUIET)

SDK, SENT, EXCHANGE, BARE, LOCK, PING = (
    crowd.SDK, "SDK, wait=False", "SDK exchange", "two bare FCALL", crowd.LOCK, "one raw PING",
)  # fmt: skip

PAIRED = (SDK, SENT, EXCHANGE, BARE, LOCK, PING)

CROWDS = (crowd.TASKS, crowd.THREADS)

LOCK_GOALS = {"one core": 0.75, "two cores": 0.9}
"""Goals for an SDK pair, in Lock pairs."""


LEVEL_CYCLES = 8
"""Measurements of a level in one round."""


@dataclass(frozen=True, slots=True)
class Effort:
    """The extent of the measurements."""

    rounds: int
    pairs: int
    levels: tuple[tuple[int, int], ...]
    footprint: int


QUICK = Effort(21, 100, ((8, 0), (64, 0), (1024, 0), (64, 1000)), 20_000)

FULL = Effort(31, 200, ((8, 0), (64, 0), (1024, 0), (16_384, 0), (64, 1000), (64, 100_000)), 20_000)


def verb_probe(pool: Pool, *, pipelined: bool) -> dict[Key, float]:
    """Server time of every verb and of the plain script."""
    run, times = pool.run_all if pipelined else pool.run, VERB_CALLS
    costs = lease_costs(pool, times, pipelined=pipelined)
    others: dict[str, Callable[[], object]] = {
        "reap": partial(run, [next(reap())] * times),
        "report": partial(run, [report_of(HOST)] * (times // HOST_DEVICES)),
        QUIET: partial(run, [report_of(HOST, pool.rows(HOST))] * (times // HOST_DEVICES)),
        PLAIN: partial(pool.plain, times, pipelined=pipelined),
    }
    for name, work in others.items():
        costs[name], _ = server_us(pool, work)
    return in_group("pipelined" if pipelined else "single", costs)


def many_probe(pool: Pool) -> dict[Key, float]:
    """Server time per lease of so many renewals by one call each, and by one call for all."""
    asks = [ask() for _ in range(MOST_AT_ONCE)]
    grants = pool.run_all(asks)
    held = [(str(a.args[1]), int(g[5]), None) for a, g in zip(asks, grants, strict=True)]
    each_us, _ = server_us(pool, partial(pool.run_all, [renew_call(*lease) for lease in held]))
    whole_us, _ = server_us(pool, partial(pool.run, [renew_many_call(held)]))
    pool.run_all([next(release(token)) for token, *_ in held])
    return in_group(MANY, {"renew": each_us, "renew_many": whole_us / MOST_AT_ONCE})


def level_probe(pool: Pool, name: str) -> dict[Key, float]:
    """Server time of the lease verbs, 8 leases at a time: so many are idle even in a pool of 8."""
    samples = [lease_costs(pool, HOST_DEVICES, pipelined=True) for _ in range(LEVEL_CYCLES)]
    return in_group(name, {verb: mean(s[verb] for s in samples) for verb in LEASE_VERBS})


def pair_probe(
    server: int, place: str, pairs: dict[str, Callable[[], object]], times: int
) -> dict[Key, float]:
    """Client time of each pair, with client and server where the place says."""
    with placed(server, place):
        return in_group(place, {name: wall_us(pair, times) for name, pair in pairs.items()})


def crowd_probe(server: int, many: Callable[[], dict[Key, float]]) -> dict[Key, float]:
    """Client time of the pairs of many tasks and threads, the server on a core of its own."""
    with placed(server, [*PLACES][-1]):
        return many()


def in_group(group: str, figures: dict[str, float]) -> dict[Key, float]:
    """Figures by group and name."""
    return {(group, name): figure for name, figure in figures.items()}


def wall_us(work: Callable[[], object], times: int) -> float:
    """Mean µs of one call as the caller sees it."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times * 1e6


def pairs_of(pool: Pool, stack: ExitStack) -> dict[str, Callable[[], object]]:
    """Return the compared clients, each on its own connection with the same settings."""
    sdk = stack.enter_context(LeaseClient(pool.store, pool=KEYS.pool_name, hostname=HOST))
    sending = stack.enter_context(
        LeaseClient(pool.store, pool=KEYS.pool_name, hostname=HOST, wait_release=False)
    )
    bare: Any = stack.enter_context(pool.store.connect())
    lock = stack.enter_context(pool.store.connect()).lock("lock", timeout=600)
    wire = stack.enter_context(socket.socket(socket.AF_UNIX))
    wire.connect(pool.store.url.removeprefix("unix://"))
    acquiring, releasing = command(ask("agent", host=HOST)), command(next(release(new_token())))

    def with_sdk() -> None:
        sdk.release(sdk.acquire("agent", memory_mb=8, ttl_s=600))

    def with_sent() -> None:
        sending.release(sending.acquire("agent", memory_mb=8, ttl_s=600))

    held = [sdk.acquire("agent", memory_mb=8, ttl_s=600)]

    def with_exchange() -> None:
        held[0] = sdk.exchange(held[0], "agent", memory_mb=8, ttl_s=600)

    def with_bare() -> None:
        token = new_token()
        bare.execute_command(*acquiring[:5], token, *acquiring[6:])
        bare.execute_command(*releasing[:5], token, *releasing[6:])

    def with_lock() -> None:
        lock.acquire()
        lock.release()

    def with_ping() -> None:
        wire.sendall(b"PING\r\n")
        wire.recv(64)

    return {SDK: with_sdk, SENT: with_sent, EXCHANGE: with_exchange, BARE: with_bare,
            LOCK: with_lock, PING: with_ping}  # fmt: skip


def measure(probes: Sequence[Callable[[], dict[Key, float]]], rounds: int) -> Samples:
    """Run every probe once a round, in rotating order; the first round is dropped."""
    samples: Samples = defaultdict(list)
    for number in range(rounds + 1):
        first = number % len(probes)
        for probe in (*probes[first:], *probes[:first]):
            for key, figure in probe().items():
                samples[key] += [figure] if number else []
    return samples


def ratio(samples: Samples, over: Key, under: Key) -> float:
    """Return the median of the ratios of each round."""
    return median(a / b for a, b in zip(samples[over], samples[under], strict=True))


def count_calls(pool: Pool) -> tuple[VerbCalls, ...]:
    """Count the calls of each verb's script, in a pool without leases."""
    pool.run([next(reap())])  # a pool that slept asks one thing more, once
    asking = ask()
    token = str(asking.args[1])
    calls = (asking, renew_call(token, None, None), next(release(token)), next(reap()))
    return tuple(calls_of(pool, call) for call in (*calls, report_of(HOST)))


def calls_of(pool: Pool, call: Call) -> VerbCalls:
    """Return the calls of one call's script."""
    pool.redis.config_resetstat()
    pool.run([call])
    by_command = {name: calls for name, (calls, _) in pool.stats().items() if name not in WAYS}
    by_command = dict(sorted(by_command.items(), key=lambda row: (-row[1], row[0])))
    return VerbCalls(call.verb, sum(by_command.values()), by_command)


def level_name(devices: int, leases: int) -> str:
    """Return the name of a level among the samples."""
    return f"{devices} devices, {leases} leases"


def run(effort: Effort) -> Results:
    """Everything, in one run."""
    with ExitStack() as stack:
        pools = {}
        for devices, leases in effort.levels:
            pool = Pool(stack.enter_context(running_store()), devices)
            pool.fill(leases)
            pools[level_name(devices, leases)] = pool
        middle = pools[level_name(64, 0)]
        calls = count_calls(middle)
        small = Pool(stack.enter_context(running_store()), HOST_DEVICES)
        pairs = pairs_of(small, stack)
        many = stack.enter_context(crowd.crowds(small.store, KEYS.pool_name, HOST))
        server = int(small.redis.info("server")["process_id"])
        probes = [
            partial(verb_probe, middle, pipelined=False),
            partial(verb_probe, middle, pipelined=True),
            partial(many_probe, middle),
            *(partial(level_probe, pool, name) for name, pool in pools.items()),
            *(partial(pair_probe, server, place, pairs, effort.pairs) for place in PLACES),
            partial(crowd_probe, server, many),
        ]
        samples = measure(probes, effort.rounds)
        version = middle.redis.info("server")["redis_version"]
    return results(effort, version, samples, calls, weigh(effort.footprint))


def results(
    effort: Effort,
    version: str,
    samples: Samples,
    calls: tuple[VerbCalls, ...],
    footprint: Footprint,
) -> Results:
    """Return the results of the samples."""
    goals = [
        Goal(f"SDK pair / {name}, {place}", limit, ratio(samples, (place, SDK), (place, other)))
        for name, other, limit in (("bare pair", BARE, 1.15),)
        for place in PLACES
    ]
    for place, limit in LOCK_GOALS.items():
        if place in PLACES:
            for mine, most in ((SDK, limit), (SENT, limit), (EXCHANGE, 0.6)):
                figure = ratio(samples, (place, mine), (place, LOCK))
                goals.append(Goal(f"{mine} / Lock pair, {place}", most, figure))
    goals += [
        Goal(f"SDK pair / Lock pair, {name}", limit, ratio(samples, (name, SDK), (name, LOCK)))
        for name, limit in zip(CROWDS, (0.5, 0.625), strict=True)
    ]
    at_once = ratio(samples, (MANY, "renew_many"), (MANY, "renew"))
    goals.append(Goal(f"renew_many / renew, per lease, {MANY}", 0.4, at_once))
    goals.append(Goal("bytes per lease", 900, footprint.bytes_per_lease))
    return Results(
        server=f"redis-server {version}",
        rounds=effort.rounds,
        verbs=tuple(verb_cost(samples, verb) for verb in (*VERBS, PLAIN)),
        calls=calls,
        levels=tuple(level_cost(samples, *level) for level in effort.levels),
        pairs=tuple(pair_cost(samples, place, client) for place in PLACES for client in PAIRED),
        crowds=tuple(
            (
                name,
                median(samples[name, SDK]),
                median(samples[name, LOCK]),
                ratio(samples, (name, SDK), (name, LOCK)),
            )
            for name in CROWDS
        ),
        footprint=footprint,
        goals=tuple(goals),
    )


def verb_cost(samples: Samples, verb: str) -> VerbCost:
    """Return a verb's row of the report."""
    single, pipelined = ("single", verb), ("pipelined", verb)
    return VerbCost(
        verb,
        median(samples[single]),
        ratio(samples, single, ("single", PLAIN)),
        median(samples[pipelined]),
        ratio(samples, pipelined, ("pipelined", PLAIN)),
    )


def level_cost(samples: Samples, devices: int, leases: int) -> LevelCost:
    """Return a level's row of the report."""
    name = level_name(devices, leases)
    return LevelCost(devices, leases, *(median(samples[name, verb]) for verb in LEASE_VERBS))


def pair_cost(samples: Samples, place: str, client: str) -> PairCost:
    """Return a client's row of the report."""
    mine = (place, client)
    pings, bares, locks = (ratio(samples, mine, (place, other)) for other in (PING, BARE, LOCK))
    return PairCost(place, client, median(samples[mine]), pings, bares, locks)


def main(argv: Sequence[str] | None = None) -> int:
    """0 whatever the figures: a ratio on a shared machine is news, not a failure."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="The goals, and what to compare: read the ratios, not the µs, which are this"
        " machine's. Starts its own redis-servers in temporary folders; touches no other.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"under 25 s: {QUICK.rounds} rounds instead of {FULL.rounds}, without the largest"
        " pools (16,384 devices; 100,000 leases)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the same figures there as JSON"
    )
    args = parser.parse_args(argv)
    found = run(QUICK if args.quick else FULL)
    print(markdown(found))
    if args.json:
        args.json.write_text(json.dumps(asdict(found), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
