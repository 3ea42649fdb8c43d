#!/bin/sh
# `/metrics?name[]=NAME` of prometheus_client wants the names of samples, not of metrics: by its own name a histogram or a
# counter is left out without a word (200 and an empty page), and a gauge is given. By `NAME_count` a histogram is given in
# part: its count without buckets and sum.
# Seen with prometheus_client 0.26.0, lines of samples: "queue_depth 1, leases 0, leases_total 1, wait_seconds 0,
# wait_seconds_count 1".
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check prometheus_client==0.26.0
"$work/venv/bin/python" - <<'PYTHON'
import sys, urllib.request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

registry = CollectorRegistry()
Gauge("queue_depth", "Waiting.", registry=registry).set(1)
Counter("leases", "Granted.", registry=registry).inc()
Histogram("wait_seconds", "Waited.", registry=registry).observe(1)
server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
port = server.server_address[1]

def samples(name: str) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics?name[]={name}") as answer:
        assert answer.status == 200
        return sum(not line.startswith(b"#") for line in answer.read().splitlines())

names = ("queue_depth", "leases", "leases_total", "wait_seconds", "wait_seconds_count")
seen = tuple(samples(name) for name in names)
server.shutdown()
print(", ".join(f"{name} {count}" for name, count in zip(names, seen)))
sys.exit(seen != (1, 0, 1, 0, 1))
PYTHON
