#!/bin/sh
# Wheels of requirements-run.lock for each Python that pyproject.toml names: nothing must be built.
# Asks the package index; downloads metadata and installs nothing.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
versions=$(sed -n 's/.*"Programming Language :: Python :: \(3\.[0-9]*\)".*/\1/p' pyproject.toml)
for version in $versions; do
  "$python" -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed \
    --target dist/none --python-version "$version" --only-binary :all: --require-hashes \
    --requirement requirements-run.lock
  echo "Python $version: every wheel is there"
done
