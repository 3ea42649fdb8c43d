#!/bin/sh
# make audit: known vulnerabilities of what requirements.lock installs.
# pip-audit asks PyPI about each of them. Where nobody answers nothing was audited: that is said, and is no success.
set -eu

cd "$(dirname "$0")/.."
tools=.venv/audit
if ! [ -x "$tools/bin/pip-audit" ]; then
  "${PYTHON:-python3}" -m venv "$tools"
  if ! "$tools/bin/pip" install --quiet --disable-pip-version-check "pip-audit>=2.10,<3"; then
    echo "audit: NOT RUN: pip-audit cannot be installed" >&2
    exit 3
  fi
fi

# --strict: a package that the service does not know ends it, instead of being passed over.
report=$(mktemp)
trap 'rm -f "$report"' EXIT
code=0
"$tools/bin/pip-audit" --strict --disable-pip --require-hashes --timeout 10 --progress-spinner off \
  -r requirements.lock >"$report" 2>&1 || code=$?
cat "$report"
if [ "$code" -ne 0 ] && ! grep -q "known vulnerabilit" "$report"; then
  echo "audit: NOT RUN: the service that knows of vulnerabilities did not answer" >&2
  exit 3
fi
exit "$code"
