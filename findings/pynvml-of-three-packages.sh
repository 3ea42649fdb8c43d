#!/bin/sh
# Three packages install a module `pynvml`; pip takes the second one over the first one's file without a word, and
# `pip check` finds nothing. The module that is left lacks calls of the last ten years.
# Seen with nvidia-ml-py 13.615.71 and nvidia-ml-py3 7.352.0: "nvmlMemory_v2: True, then False; pip check: 0".
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip="$work/venv/bin/pip --quiet --disable-pip-version-check"
python="$work/venv/bin/python"
has() { "$python" -c 'import pynvml; print(hasattr(pynvml, "nvmlMemory_v2"))'; }
$pip install nvidia-ml-py==13.615.71
before=$(has)
$pip install --no-build-isolation setuptools wheel
$pip install --no-build-isolation nvidia-ml-py3==7.352.0
after=$(has)
checked=0
$pip check >/dev/null || checked=$?
echo "nvmlMemory_v2: $before, then $after; pip check: $checked"
[ "$before" = True ] && [ "$after" = False ] && [ "$checked" -eq 0 ]
