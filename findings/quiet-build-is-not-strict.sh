#!/bin/sh
# `mkdocs build --strict` ends with 1 at a link that leads nowhere. With `--quiet` beside it the same
# build ends with 0, and says nothing: --strict counts the warnings that are logged, and --quiet
# keeps them from being logged. A quiet documentation check in CI so checks nothing.
# Seen with mkdocs 1.6.1: exit 1 with --strict, exit 0 with --strict --quiet.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check mkdocs==1.6.1
mkdir "$work/docs"
echo "site_name: site" >"$work/mkdocs.yml"
echo "[a page that is not there](nowhere.md)" >"$work/docs/index.md"
code() { "$work/venv/bin/mkdocs" build "$@" --config-file "$work/mkdocs.yml" >"$work/said" 2>&1 && echo 0 || echo $?; }
strict=$(code --strict)
quiet=$(code --strict --quiet)
echo "exit codes: --strict $strict, --strict --quiet $quiet; the second said $(wc -c <"$work/said") bytes"
[ "$strict $quiet" = "1 0" ]
