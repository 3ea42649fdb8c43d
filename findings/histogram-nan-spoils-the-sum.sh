#!/bin/sh
# One NaN, which is how a GPU's missing reading is often told, makes the sum of a prometheus_client Histogram NaN for ever,
# and is counted nowhere: `_count` and every bucket, `+Inf` too, stay as they were. Nothing is raised. So the average (sum /
# count) is gone until the process ends, and the count shows no observation to look for.
# Seen with prometheus_client 0.26.0: "count 2.0, +Inf 2.0, sum nan" after observing 1, NaN, 2.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check prometheus_client==0.26.0
"$work/venv/bin/python" - <<'PYTHON'
import math, sys
from prometheus_client import CollectorRegistry, Histogram

registry = CollectorRegistry()
power = Histogram("gpu_power_kw", "Power drawn.", registry=registry)
for reading in (1, math.nan, 2):
    power.observe(reading)
count = registry.get_sample_value("gpu_power_kw_count")
last = registry.get_sample_value("gpu_power_kw_bucket", {"le": "+Inf"})
total = registry.get_sample_value("gpu_power_kw_sum")
print(f"count {count}, +Inf {last}, sum {total}")
sys.exit(not (count == last == 2 and math.isnan(total)))
PYTHON
