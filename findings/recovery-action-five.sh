#!/bin/sh
# NVML's recovery action 5 means different things: nvidia-ml-py 13.580 calls it GPU_RESET_BUS, 13.590 and 13.595 have no 5,
# and 13.610 calls it RECOVER_IMEX_DOMAIN; a reset of the bus is 6 from 13.615 on. NVML's change log says that 595 added
# RECOVER_IMEX_DOMAIN. So the number alone does not say what to do: the driver's branch is needed too.
# Seen with nvidia-ml-py 13.580.126, 13.590.48, 13.595.45, 13.610.43 and 13.615.71.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
said=""
for version in 13.580.126 13.590.48 13.595.45 13.610.43 13.615.71; do
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check "nvidia-ml-py==$version"
  line=$("$work/venv/bin/python" - <<'PYTHON'
import pynvml
names = {n: v for n, v in vars(pynvml).items() if n.startswith("NVML_GPU_RECOVERY_ACTION_")}
short = {v: n.removeprefix("NVML_GPU_RECOVERY_ACTION_") for n, v in names.items()}
print(short.get(5, "-"), short.get(6, "-"))
PYTHON
)
  echo "$version: 5 is ${line% *}, 6 is ${line#* }"
  said="$said$line;"
done
[ "$said" = "GPU_RESET_BUS -;- -;- -;RECOVER_IMEX_DOMAIN -;RECOVER_IMEX_DOMAIN BUS_RESET;" ]
