#!/bin/sh
# reslock keeps a queue, and at equal priority its order decides nothing: the first waiter that looks once there is room gets
# it, so one with a shorter `poll_interval` passes one that has waited for longer. `try_acquire` passes all who wait, and so
# does the same process that has just given it back.
# Seen with reslock 0.12.3: "try_acquire beside ['first in the queue', 'second']: got it; then ['second', 'first in the
# queue']".
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check reslock==0.12.3
"$work/venv/bin/python" - "$work/state.json" <<'PYTHON'
import asyncio, sys
from reslock import ResourcePool

pool = ResourcePool(sys.argv[1])
pool.set_resources({"gpu_mb": 24_000})
order = []

async def wait(name: str, every_s: float) -> None:
    lease = await pool.acquire_async(gpu_mb=24_000, label=name, poll_interval=every_s)
    order.append(name)
    lease.release()

async def main() -> bool:
    held = pool.try_acquire(gpu_mb=24_000, label="holder")
    assert held
    slow = asyncio.create_task(wait("first in the queue", 2.0))
    await asyncio.sleep(0.3)
    quick = asyncio.create_task(wait("second", 0.05))
    await asyncio.sleep(0.3)
    queued = [entry.label for entry in pool.status().queue]
    assert queued == ["first in the queue", "second"], queued
    held.release()
    passed = pool.try_acquire(gpu_mb=24_000, label="newcomer")
    if passed:
        await asyncio.sleep(0.2)
        passed.release()
    await asyncio.gather(slow, quick)
    print(f"try_acquire beside {queued}: {'got it' if passed else 'did not'}; then {order}")
    return bool(passed) and order == ["second", "first in the queue"]

sys.exit(not asyncio.run(main()))
PYTHON
