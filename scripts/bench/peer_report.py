"""The page, the table and the picture of a run of `peers`."""

from __future__ import annotations

from statistics import median, quantiles
from typing import TYPE_CHECKING

import bench
from peer_probes import ASKED, QUESTIONS
from rival import ASYNC_LOCK, ETCD, OURS, OURS_ASYNC, OURS_DURABLE, PING, SCRIPT
from rivals import CLIENTS_ARE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from peers import Results

PAIRS_SAY = """\
Acquire and release, each client a resource of its own; in brackets µs of a pair: median and the
99th of a hundred. Clients are threads or tasks of one process, or processes, as each kind is meant
to be used. A floor's pair is one call. etcd syncs every write to disk (by its JSON gateway, one
session for all pairs); so does our row with fsync (AOF, `always`). All other servers write nothing
to disk. An acquire of ours also counts the memory of GPUs, agent and pool, and tells it all who
watch; a lock sets a key."""

RATIOS_SAY = """\
Pairs per second of ours, threads with threads and tasks with tasks, beside each; the median of the
ratios of each round. Above 1 ours does more."""

HANDOFF_SAYS = """\
From the call of release to the return of the next holder's acquire, half of the time in another
process; a holder holds it for 0.1 to 0.25 s, and stands aside until the next has it. In ms:
median and the 95th of a hundred."""

DEATH_SAYS = """\
From SIGKILL of the holder, 0.4 s after it acquired with a ttl of 2 s (etcd: a session of 2 s), to
the return of the acquire of one who waits. No broker runs: ours is noticed by the first in the
queue; with brokers, within a second. On a real GPU ours waits on, until its memory is seen to
be free, for `expiry_grace_s` (5 s) at most. A file lock ends with its process, on one host."""

PROMISES_SAY = """\
On servers of their own, by two processes: `probed`, or read off the interface where there is
nothing to call. The order is asked three times at most, and once is enough."""


def markdown(found: Results) -> str:
    """Return the whole page."""
    parts = [
        "# The broker beside its peers",
        ", ".join(f"{name} {version}" for name, version in found.setting.items()) + ".",
        "## Pairs per second",
        PAIRS_SAY,
        bench.table(["", "clients are", "1", "10", "100"], pair_rows(found, with_times)),
        "### Ratios",
        RATIOS_SAY,
        bench.table(["", "1", "10", "100"], ratio_rows(found)),
        "## Hand-off",
        HANDOFF_SAYS,
        bench.table(["waiters", "1", "20"], handoff_rows(found)),
        "## The holder dies",
        DEATH_SAYS,
        bench.table(["", "s, median", "most"], death_rows(found)),
        "## What each does beside",
        PROMISES_SAY,
        bench.table(["", *ASKED], promise_rows(found, explained=True)),
        *missing(found),
    ]
    return "\n\n".join(parts)


def short(found: Results) -> str:
    """Return the tables of docs/performance.md."""
    rows = []
    pairs = {row[0]: row[-1] for row in pair_rows(found, plain)}
    handed = {row[0]: row[1:] for row in handoff_rows(found)}
    dead = {row[0]: row[1] for row in death_rows(found)}
    for kind in (OURS, OURS_ASYNC, *[k for k in pairs if k not in {OURS, OURS_ASYNC}]):
        if kind in pairs:
            one, many = handed.get(kind, ["-", "-"])
            rows.append([kind, pairs[kind], one, many, dead.get(kind, "-")])
    head = ["", "pairs/s, 100 clients", "hand-off, ms (95 %), 1 waiter", "20", "after SIGKILL, s"]
    promises = bench.table(["", *ASKED], promise_rows(found, explained=False))
    return "\n\n".join([bench.table(head, rows), promises, *missing(found)])


def missing(found: Results) -> list[str]:
    """Return what could not be measured, and why."""
    lines = [f"- {what}: {why}" for what, why in found.missing.items()]
    return ["Not measured:", "\n".join(lines)] if lines else []


def with_times(rounds: list[dict[str, float]]) -> str:
    """Pairs per second and the times of one."""
    p50, p99 = (median(x[name] for x in rounds) for name in ("p50_us", "p99_us"))
    return f"{plain(rounds)} ({p50:,.0f}, {p99:,.0f})"


def plain(rounds: list[dict[str, float]]) -> str:
    """Pairs per second."""
    return f"{median(x['pairs_per_s'] for x in rounds):,.0f}"


def pair_rows(found: Results, cell: Callable[[list[dict[str, float]]], str]) -> list[list[str]]:
    """Return a row for each kind."""
    return [
        [kind, CLIENTS_ARE[kind], *(cell(rounds) if rounds else "-" for rounds in by.values())]
        for kind, by in found.pairs.items()
    ]


def ratio_rows(found: Results) -> list[list[str]]:
    """Ours over each, like with like."""
    rows = []
    for kind, by in found.pairs.items():
        if kind in {OURS, OURS_ASYNC}:
            continue
        ours = OURS_DURABLE if kind == ETCD else OURS_ASYNC if kind == ASYNC_LOCK else OURS
        mine = OURS_ASYNC if kind == OURS_DURABLE else ours
        if mine in found.pairs:
            rows.append([
                f"{mine} / {kind}",
                *(f"{ratio(found.pairs[mine][n], by[n]):.2f}" for n in by if by[n]),
            ])  # fmt: skip
    return rows


def ratio(over: list[dict[str, float]], under: list[dict[str, float]]) -> float:
    """Return the median of each round's ratio."""
    both = zip(over, under, strict=False)
    return median(a["pairs_per_s"] / b["pairs_per_s"] for a, b in both)


def handoff_rows(found: Results) -> list[list[str]]:
    """Median and 95th of a hundred."""
    return [[kind, *(spread_ms(us) for us in by.values())] for kind, by in found.handoff_us.items()]


def spread_ms(us: Sequence[float]) -> str:
    """Median and 95th, in ms."""
    if len(us) < 2:  # noqa: PLR2004 - quantiles need two
        return "-"
    return f"{median(us) / 1000:.1f} ({quantiles(us, n=20)[-1] / 1000:.0f})"


def death_rows(found: Results) -> list[list[str]]:
    """Return the time for which no client had it."""
    return [[kind, f"{median(s):.2f}", f"{max(s):.2f}"] for kind, s in found.death_s.items()]


def promise_rows(found: Results, *, explained: bool) -> list[list[str]]:
    """Yes or no of each."""
    rows = []
    for question in QUESTIONS:
        row = [question]
        for kind in ASKED:
            answer = found.answers.get(kind, {}).get(question)
            said = "?" if answer is None else "yes" if answer.yes else "no"
            row.append(f"{said} ({answer.how})" if answer and explained else said)
        rows.append(row)
    return rows


def put(page: Path, name: str, text: str) -> None:
    """Write a section of a page anew, between its markers; a page without them stays as it is."""
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if found and closed:
        page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def plot(found: Results, path: Path) -> None:
    """Pairs per second by clients; hand-offs."""
    import matplotlib as mpl  # noqa: PLC0415 - only who plots needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - slow to import, for --write alone

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    colours = dict(zip(found.pairs, plt.get_cmap("tab20").colors[::2] * 2, strict=False))
    for kind, by in found.pairs.items():
        figures = {
            n: median(x["pairs_per_s"] for x in rounds) for n, rounds in by.items() if rounds
        }
        ours, floor = kind.startswith(OURS), kind in {SCRIPT, PING}
        style = {SCRIPT: "o:", PING: "s:"}.get(kind, "o-")
        left.plot(list(figures), list(figures.values()), style, label=kind,
                  color="#999999" if floor else colours[kind], lw=3 if ours else 1.2)  # fmt: skip
    left.set(xscale="log", yscale="log", xlabel="clients", ylabel="pairs per second",
             title="Acquire and release, uncontended (more is better)")  # fmt: skip
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False, fontsize=8)  # fmt: skip
    kinds = [kind for kind in found.handoff_us if kind in colours]
    for at, waiters in enumerate((1, 20)):
        heights = [median(found.handoff_us[k].get(waiters) or [float("nan")]) / 1000 for k in kinds]
        places = [n + (at - 0.5) * 0.38 for n in range(len(kinds))]
        right.barh(
            places, heights, 0.36, label=f"{waiters} waiting", color=("#0072B2", "#D55E00")[at]
        )
    right.set(
        xscale="log",
        xlim=(0.1, 300),
        xlabel="ms, median",
        title="From release to the next holder (less is better)",
    )
    right.set_yticks(range(len(kinds)), kinds, fontsize=8)
    right.invert_yaxis()
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, which="major", alpha=0.3)
    figure.savefig(path, dpi=110)
