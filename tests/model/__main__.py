"""`make model`: a long walk, a deeper exploration, the seeded bugs from random seeds."""

from __future__ import annotations

import argparse
import random
import sys
import time

from tests.model.bugs import BUGS
from tests.model.explore import explore
from tests.model.planted import planted
from tests.model.run import Failure, World
from tests.model.scenes import SCENES

BUG_S, BUG_STEPS = 120, 1500
"""Seconds that a seeded bug may stay hidden, and steps of each walk that looks for it."""


def walk(world: World, seed: str, steps: int) -> bool:
    """The long walk; whether nothing was found."""
    began = time.monotonic()
    try:
        world.walk(seed, steps)
    except Failure as failure:
        print(world.shrink(failure))
        print(f"again: make model N={steps} SEED={seed}")
        return False
    took_s = time.monotonic() - began
    rate = f"{took_s:.0f} s, {steps / took_s:.0f}/s"
    print(f"walk: seed {seed}, {steps} steps in {rate}: no violation", flush=True)
    return True


def small_world(world: World, most: int, name: str) -> bool:
    """Every life of a small world in the model, and a sample of them on the scripts."""
    began = time.monotonic()
    found = explore(most, SCENES[name])
    took_s = time.monotonic() - began
    seen = f"{name}, {found.states} states, {found.moves} moves, {found.depth} deep"
    print(f"explorer: {seen} in {took_s:.0f} s", flush=True)
    began, sample = time.monotonic(), found.sample(2000)
    for path in sample:
        if failure := world.fails(path):
            print(failure)
            return False
    print(
        f"explorer: {len(sample)} of their paths on the scripts in {time.monotonic() - began:.0f} s"
    )
    return True


def seeded(world: World, rng: random.Random) -> bool:
    """Each bug from random seeds; whether all were found in time."""
    hidden = []
    for bug in BUGS:
        began, found = time.monotonic(), ""
        with planted(world, bug):
            while not found and time.monotonic() - began < BUG_S:
                seed = str(rng.randrange(10**9))
                try:
                    world.walk(seed, BUG_STEPS)
                except Failure as failure:
                    found = f"seed {seed}, {len(failure.steps)} steps, {failure.kind}"
        took_s = time.monotonic() - began
        print(f"bug: {bug.name}: {found or 'NOT FOUND'} ({took_s:.1f} s)", flush=True)
        hidden += [] if found else [bug.name]
    return not hidden


def main() -> int:
    """Run all three; 1 when something was found that should not be, or not found that should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--states", type=int, default=200_000)
    parser.add_argument("--seed", default="")
    args = parser.parse_args()
    seed = args.seed or str(random.SystemRandom().randrange(10**9))
    print(f"seed {seed}", flush=True)
    with World.on_a_server(functions=True) as world:
        good = walk(world, seed, args.steps)
        world.often = "tug"
        good = walk(world, seed, args.steps // 2) and good
        world.often = ""
        for name in SCENES:
            good = small_world(world, args.states, name) and good
        good = seeded(world, random.Random(seed)) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
