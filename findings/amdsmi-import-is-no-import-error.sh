#!/bin/sh
# `import amdsmi` on a machine without ROCm raises KeyError, not ImportError, so the usual `try: import ... except ImportError`
# ends the program; and it prints two lines on stdout, where a program's own output is.
# Seen with amdsmi 7.0.2: "KeyError, 2 lines on stdout".
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check amdsmi==7.0.2
cat >"$work/program.py" <<'PYTHON'
import sys

try:
    import amdsmi
except ImportError:
    print("ImportError", file=sys.stderr)
except Exception as error:
    print(type(error).__name__, file=sys.stderr)
PYTHON
"$work/venv/bin/python" "$work/program.py" >"$work/out" 2>"$work/raised"
raised=$(cat "$work/raised")
lines=$(wc -l <"$work/out")
echo "$raised, $lines lines on stdout"
[ "$raised" = KeyError ] && [ "$lines" -eq 2 ]
