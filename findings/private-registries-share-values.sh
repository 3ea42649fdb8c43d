#!/bin/sh
# With PROMETHEUS_MULTIPROC_DIR set, two private registries of prometheus_client share their values: a counter that was just
# made in a registry of its own begins where a counter of the same name in another registry stands, and afterwards the two
# drift apart, each counting by itself and writing over the other's file. Where values live is chosen at import, by the
# variable, for every registry, also for one that is never read across processes (two brokers, or two tests, in one process).
# Seen with prometheus_client 0.26.0: "second begins at 3.0; after one more: first 3.0, second 4.0"; without the variable 0.0.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check prometheus_client==0.26.0
mkdir "$work/values"
"$work/venv/bin/python" - "$work/values" <<'PYTHON'
import os, subprocess, sys

PROGRAM = """
from prometheus_client import CollectorRegistry, Counter
first, second = CollectorRegistry(), CollectorRegistry()
Counter('leases', 'Leases granted.', registry=first).inc(3)
counter = Counter('leases', 'Leases granted.', registry=second)
print(second.get_sample_value('leases_total'), end=' ')
counter.inc()
print(first.get_sample_value('leases_total'), second.get_sample_value('leases_total'))
"""

def seen(**variables: str) -> list[float]:
    words = subprocess.check_output([sys.executable, "-c", PROGRAM], env={**os.environ, **variables}, text=True)
    return [float(word) for word in words.split()]

shared, alone = seen(PROMETHEUS_MULTIPROC_DIR=sys.argv[1]), seen()
print("second begins at {}; after one more: first {}, second {}".format(*shared), "; without the variable", alone)
sys.exit((shared, alone) != ([3.0, 3.0, 4.0], [0.0, 3.0, 1.0]))
PYTHON
