"""Server time of a lease in this checkout beside other checkouts, in one run.

Each checkout runs its own code on redis-servers of its own. A round takes one sample of each, in
rotating order, so that a noisy neighbour disturbs all alike. What is told are medians of the ratios
of each round; the first round warms up. With --instructions the servers run under callgrind
instead: exact counts, which do not depend on what else the machine does.

A release pays for its part of a fold only where no reaper comes by: so many leases end before the
first sample that it does. The counts have both.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

HERE = Path(__file__).resolve().parents[2]
VERBS = ("acquire", "renew", "release")
SIZES = (8, 16_384)
"""Devices of the pools that are compared for placement."""

ROUNDS, QUICK_ROUNDS = 31, 11
CALLS, COUNTED_CALLS = 64, 256
"""Calls of each verb in one sample, timed or counted: one agent may hold 256 leases.

So many releases make two folds, whatever was before.
"""

ENDS = 1100
"""Leases that end before the first sample: from then on releases fold."""

CYCLES = 8
"""Samples of a pool's size in one round: 8 leases at a time, all on devices that were idle."""

WORKER = """
import json, sys
from contextlib import ExitStack
from functools import partial
from statistics import mean
from dataclasses import replace
import agent_sdk
try:
    from agent_sdk.scripts import library as functions
except ImportError:  # before scripts was a package
    from agent_sdk import functions
try:
    from agent_sdk.protocol.lease import release, renew_call
except ImportError:  # before protocol was a package
    from agent_sdk.protocol import release, renew_call
try:
    from scripts.bench import bench
except ImportError:  # before verbs.py was divided
    from scripts.bench import verbs as bench

root, calls, counted_calls, cycles = sys.argv[1], *map(int, sys.argv[2:])
assert agent_sdk.__file__.startswith(root), agent_sdk.__file__


def means(samples):
    return {verb: mean(sample[verb] for sample in samples) for verb in samples[0]}


def acts(pool, times):
    yield "nothing", partial(pool.run_all, [])
    asks = [bench.ask() for _ in range(times)]
    tokens = [str(call.args[1]) for call in asks]
    yield "acquire", partial(pool.run_all, asks)
    yield "renew", partial(pool.run_all, [renew_call(token, None, None) for token in tokens])
    yield "release", partial(pool.run_all, [next(release(token)) for token in tokens])


OFTEN, still = "LOOK_MS = 100", False
with ExitStack() as stack:
    pools = {}
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "weigh":
            found = bench.weigh(int(rest)).bytes_per_lease
        elif word == "still":
            found = still = True
        elif word == "pool":
            if still:
                library = functions.own_library()
                assert OFTEN in library.source
                functions.own_library = lambda: replace(library, source=library.source.replace(
                    OFTEN, "LOOK_MS = 1e12"))
            pools[rest] = bench.Pool(stack.enter_context(bench.running_store()), int(rest))
            found = pools[rest].redis.info("server")["process_id"]
        elif word == "lease":
            found = bench.lease_costs(pools[rest], calls, pipelined=True)
        elif word == "level":
            found = means([bench.lease_costs(pools[rest], 8, pipelined=True)
                           for _ in range(cycles)])
        elif word == "acts":
            steps = dict(acts(pools[rest], counted_calls))
            found = list(steps)
        elif word == "act":
            steps[rest]()
            found = None
        else:
            raise SystemExit(f"no such word: {word}")
        print(json.dumps(found), flush=True)
"""
"""Program of one checkout: answers each line that it reads with a line of JSON.

`still`: its servers are not asked every 100 ms which server they are. Under callgrind that would be
every few calls.
"""


class Checkout:
    """A checkout's program, with pools on servers of its own."""

    def __init__(self, root: Path, path: str = "") -> None:
        self.root = root
        environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'scripts/bench'}"}
        if path:
            environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
        sizes = map(str, (CALLS, COUNTED_CALLS, CYCLES))
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(root), *sizes],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def ask(self, line: str) -> Any:
        """Send a line, and return what the program answers."""
        if self._process.stdin is None or self._process.stdout is None:
            raise SystemExit(f"the program of {self.root} has no pipes")
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"the program of {self.root} has ended: see above why")
        return json.loads(answer)


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of each checkout, and the others' medians of ratios with this one's."""

    name: str
    figures: tuple[float, ...]
    ratios: tuple[float, ...]


def timed(checkouts: Sequence[Checkout], rounds: int, leases: int) -> list[Row]:
    """Measure server time and memory in all checkouts."""
    small, large = (str(size) for size in SIZES)
    for checkout in checkouts:
        for size in (small, large):
            checkout.ask(f"pool {size}")
        for _ in range(ENDS // CALLS + 1):
            checkout.ask(f"lease {small}")
    samples: dict[str, list[list[float]]] = {}
    for number in range(rounds + 1):
        order = range(len(checkouts))
        found: dict[str, list[float]] = {}
        for at in (*order[number % len(order) :], *order[: number % len(order)]):
            for name, figure in sample(checkouts[at], small, large).items():
                found.setdefault(name, [0.0] * len(order))[at] = figure
        for name, figures in found.items():
            samples.setdefault(name, []).extend([figures] if number else [])
    rows = [row_of(name, figures) for name, figures in samples.items()]
    weights = [checkout.ask(f"weigh {leases}") for checkout in checkouts]
    return [*rows, row_of("bytes per lease", [weights])]


def sample(checkout: Checkout, small: str, large: str) -> dict[str, float]:
    """Return one sample of everything that is timed, in µs, and the cost of size as a ratio."""
    found = {f"{verb}, µs": us for verb, us in checkout.ask(f"lease {small}").items()}
    few, many = (checkout.ask(f"level {size}") for size in (small, large))
    return found | {f"{verb}, {large} devices / {small}": many[verb] / few[verb] for verb in VERBS}


def row_of(name: str, figures: Sequence[Sequence[float]]) -> Row:
    """Return the row of some rounds' figures, each round's by checkout."""
    columns = [median(column) for column in zip(*figures, strict=True)]
    ratios = [median(each[0] / each[at] for each in figures) for at in range(1, len(columns))]
    return Row(name, tuple(columns), tuple(ratios))


@contextmanager
def under_callgrind() -> Iterator[tuple[str, Path]]:
    """Yield a folder whose redis-server runs under callgrind, and where that writes."""
    server, valgrind = shutil.which("redis-server"), shutil.which("valgrind")
    if server is None or valgrind is None:
        raise SystemExit("--instructions needs redis-server and valgrind on PATH")
    with tempfile.TemporaryDirectory(prefix="gpu-beside-") as folder:
        wrapper = Path(folder) / "redis-server"
        out = Path(folder) / "out"
        wrapper.write_text(
            f"#!/bin/sh\nexec {valgrind} --tool=callgrind --callgrind-out-file={out}.%p"
            f' -q {server} "$@"\n'
        )
        wrapper.chmod(0o700)
        yield folder, out


def counted(checkouts: Sequence[Checkout], out: Path) -> list[Row]:
    """Count the instructions of a server for one call of each verb, all that it does counted.

    The second cycle's release is the one without a fold.
    """
    found: dict[str, list[float]] = {}
    size = str(SIZES[0])
    for checkout in checkouts:
        checkout.ask("still")
        pid = int(checkout.ask(f"pool {size}"))
        cycles, last = [], ENDS // COUNTED_CALLS + 1
        for number in range(last + 1):
            counts = {}
            for verb in checkout.ask(f"acts {size}"):
                if number not in {1, last}:  # it warms up, or ends leases
                    checkout.ask(f"act {verb}")
                else:
                    counts[verb] = count(checkout, verb, pid, out)
            idle = counts.pop("nothing", 0)  # what the server does meanwhile
            cycles.append({verb: (n - idle) / COUNTED_CALLS for verb, n in counts.items()})
        for verb, each in cycles[-1].items():
            found.setdefault(f"{verb}, instructions", []).append(each)
        found.setdefault("release, not folding", []).append(cycles[1]["release"])
    return [row_of(name, [figures]) for name, figures in found.items()]


def count(checkout: Checkout, verb: str, pid: int, out: Path) -> int:
    """Count the instructions of a server while a program's verb runs."""
    control = shutil.which("callgrind_control") or "callgrind_control"
    subprocess.run([control, "-z", str(pid)], check=True, capture_output=True)
    checkout.ask(f"act {verb}")
    subprocess.run([control, "-d", str(pid)], check=True, capture_output=True)
    dumps = sorted(out.parent.glob(f"{out.name}.{pid}.*"), key=lambda path: path.stat().st_mtime_ns)
    lines = dumps[-1].read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("totals:"))


def table(checkouts: Sequence[Path], rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    names = [path.name for path in checkouts]
    head = ["", *names, *(f"{names[0]} / {name}" for name in names[1:])]
    lines = [head, ["---", *("---:" for _ in head[1:])]]
    for row in rows:
        form = ".2f" if " / " in row.name else ",.1f"
        figures = [f"{figure:{form}}" for figure in row.figures]
        lines.append([row.name, *figures, *(f"{ratio:.3f}" for ratio in row.ratios)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 whatever the figures: a ratio on a shared machine is news, not a failure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "path", type=Path, nargs="+", help="another checkout: `git worktree add PATH COMMIT`"
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds")
    parser.add_argument("--leases", type=int, default=20_000, help="leases that are weighed")
    parser.add_argument(
        "--instructions", action="store_true", help="count instructions; needs valgrind"
    )
    args = parser.parse_args(argv)
    roots = [HERE, *(path.resolve() for path in args.path)]
    with ExitStack() as stack:
        folder, out = "", Path()
        if args.instructions:
            folder, out = stack.enter_context(under_callgrind())
        checkouts = [stack.enter_context(Checkout(root, folder)) for root in roots]
        rounds = QUICK_ROUNDS if args.quick else ROUNDS
        rows = (
            counted(checkouts, out) if args.instructions else timed(checkouts, rounds, args.leases)
        )
    print(table(roots, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
