#!/bin/sh
# NVML's version constants hold, in their low 24 bits, the size of the structure that the driver fills. In nvidia-ml-py one
# structure has another size than its own constant says: c_nvmlPerfMetricsSamples_v1_t is 115,344 bytes and its constant says
# 42,024, which leaves 3,232 bytes for each of its 13 samples where Python has 8,872; so, if the constant is right, Python
# looks for all but the first in the wrong place, without an error. Another, c_nvmlPRMCounterValue_v1_t, cannot be made at
# all: it names the module `pynvml` inside that module (NameError). No GPU and no driver is needed to see either.
# Seen with nvidia-ml-py 13.615.71.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check nvidia-ml-py==13.615.71
"$work/venv/bin/python" - <<'PYTHON'
import ctypes, inspect, sys
import pynvml

odd, failed = {}, []
for name, kind in inspect.getmembers(pynvml, inspect.isclass):
    if not (name.startswith("c_nvml") and issubclass(kind, ctypes.Structure)):
        continue
    try:
        made = kind()
    except NameError:
        failed.append(name)
        continue
    except TypeError:  # wants arguments
        continue
    version = getattr(made, "version", None)
    if isinstance(version, int) and version and version & 0xFFFFFF != ctypes.sizeof(kind):
        odd[name] = (version & 0xFFFFFF, ctypes.sizeof(kind))
print("size by constant and in fact:", odd, "; cannot be made:", failed)
wanted = {"c_nvmlPerfMetricsSamples_v1_t": (42024, 115344)}
sys.exit((odd, failed) != (wanted, ["c_nvmlPRMCounterValue_v1_t"]))
PYTHON
