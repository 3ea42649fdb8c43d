#!/bin/sh
# GPUtil asks nvidia-smi, and a GPU with unified memory (GB10) answers [N/A] for each memory figure. getAvailable then never
# offers it: `includeNan=True`, documented as "include GPUs whose load or memory is NaN", does not help, because free memory is
# compared as well and no comparison with NaN is true. The same option does offer a GPU whose utilisation reads
# [Unknown Error], which is how a sick one answers.
# The machine is three lines in nvidia-smi's own CSV form, after public reports.
# Seen with GPUtil 1.4.0: "plain [], includeNan [2]" for GPUs 0 (GB10, idle), 1 (busy), 2 (sick).
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check gputil==1.4.0 setuptools==80.9.0
mkdir "$work/bin"
cat >"$work/bin/nvidia-smi" <<'MACHINE'
#!/bin/sh
cat <<'CSV'
0, GPU-11111111-2222-3333-4444-555555555555, 3, [N/A], [N/A], [N/A], 580.95.05, NVIDIA GB10, [N/A], Disabled, Disabled, 46
1, GPU-21111111-2222-3333-4444-555555555555, 97, 81559, 80000, 1559, 580.95.05, NVIDIA H100 80GB HBM3, 1650, Disabled, Disabled, 66
2, GPU-31111111-2222-3333-4444-555555555555, [Unknown Error], 81559, 0, 81559, 580.95.05, NVIDIA H100 80GB HBM3, 1651, Disabled, Disabled, 40
CSV
MACHINE
chmod +x "$work/bin/nvidia-smi"
PATH="$work/bin:$PATH" "$work/venv/bin/python" - <<'PYTHON'
import sys
import GPUtil

plain = GPUtil.getAvailable(limit=9)
with_nan = GPUtil.getAvailable(limit=9, includeNan=True)
print(f"plain {plain}, includeNan {with_nan}")
sys.exit(not (plain == [] and with_nan == [2]))
PYTHON
