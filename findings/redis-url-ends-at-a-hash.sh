#!/bin/sh
# redis-py reads a URL to its first '#' and leaves the rest out without a word: a password of digits, a '#' and more is taken
# for a port of this machine, a socket's path ends there, and so does the database. Only where what is left cannot be a port is
# there an error, about the port.
# Seen with redis 8.1.0: "localhost:6380/0 without a password", "path /run/a", "database 0".
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0
"$work/venv/bin/python" - <<'PYTHON'
import sys

from redis.connection import parse_url

here = parse_url("redis://:6380#secret@store.example:6379/3")
path = parse_url("unix:///run/a#b.sock")
database = parse_url("redis://store.example#cache/3")
print("localhost:%s/%s" % (here.get("port"), here.get("db", 0)), "password", here.get("password"))
print("path", path["path"], "| database", database.get("db", 0))
same = here.get("host") is None and here["port"] == 6380 and "password" not in here
sys.exit(not (same and path["path"] == "/run/a" and database.get("db", 0) == 0))
PYTHON
