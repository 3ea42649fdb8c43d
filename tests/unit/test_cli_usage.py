"""`gpu-broker usage` and `gpu-broker history`: exact numbers, files that can be read back."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from pyarrow import parquet

from agent_sdk.usage import history
from broker.cli.past import export as exporting
from broker.cli.past import parquet as parquet_files
from broker.cli.past.use_table import csv_text
from tests.pools import token
from tests.program import called
from tests.usage import (
    HOUR_MS,
    LATE_MS,
    NOON_MS,
    TODAY,
    at_noon,
    grant,
    leap,
    let,
    release,
    use,
)

if TYPE_CHECKING:
    from pathlib import Path
    from subprocess import CompletedProcess

    from tests.pools import Pool
    from tests.servers import Server


@pytest.fixture
def lab(pool: Pool) -> Pool:
    """Two GPUs of two models; ann had half of one for an hour, bob has the other since then."""
    at_noon(pool)
    grant(pool, "1", "ann", team="nlp")
    t = let(pool, 10_000)
    use(pool, "gpu-a", f"{token('1')}={t}:{t}::1000:")
    leap(pool, HOUR_MS // 2)
    use(pool, "gpu-a", f"{token('1')}={t}:{t + HOUR_MS // 2}:{HOUR_MS // 8}:2000:3600000000")
    leap(pool, HOUR_MS // 2 - 10_000)
    release(pool, "1")
    let(pool, LATE_MS)
    grant(pool, "2", "bob", team="vision", model="m2", memory_mb=8000)
    leap(pool, HOUR_MS)
    return pool


@pytest.fixture
def cli(lab: Pool, server: Server) -> Any:
    def run(*args: str, expect: int = 0) -> CompletedProcess[str]:
        where = {"REDIS_URL": server.url, "GPU_BROKER_POOL": lab.keys.pool_name}
        done = called(*args, GPU_BROKER_HOSTNAME="h1", **where)
        assert done.returncode == expect, done.stdout + done.stderr
        return done

    return run


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_table_has_everybody_and_the_sum(cli: Any) -> None:
    """The most GPU-hours first; what is not there is a dash."""
    lines = [line.split() for line in cli("usage").stdout.splitlines()]
    assert lines[0][:5] == ["TEAM", "AGENT", "LEASES", "RUNNING", "GPU-HOURS"]
    assert lines[1] == ["vision", "bob", "0", "1", "1.00", "-", "-", "1.00", "-", "-", "-", "-"]
    assert lines[2] == ["nlp", "ann", "1", "-", "0.50", "0.06", "(25%)", "0.19", "0.25", "1.95",
                        "GiB-h", "-", "-", "1.00"]  # fmt: skip
    assert lines[3][:4] == ["TOTAL", "1", "1", "1.50"]
    text = cli("usage").stdout
    assert f"2100-01-30 to {TODAY}, whole days of UTC; with what runs now, up to {TODAY} 14:00" in (
        text
    )


def test_days_that_are_gone_are_said(cli: Any) -> None:
    """A longer period than the policy keeps begins later than asked."""
    assert "earlier days are gone, as the policy's usage_days says" in (
        cli("usage", "--since", "500d").stdout
    )
    assert "gone" not in cli("usage", "--since", "399d").stdout
    text = cli("usage", "--since", "2000-01-01", "--until", "2000-01-02").stdout
    assert text.startswith("nothing is known any more of this period: 2000-01-02 to 2000-01-02")
    assert "these days are gone" in text


def test_forms_have_the_same_numbers(lab: Pool, cli: Any) -> None:
    """JSON with the period and the total, CSV a line for each; the cost when there are prices."""
    lab.set_policy(price_per_gpu_hour="m1=3")
    data = json.loads(cli("usage", "--by", "model,team", "--day", "-o", "json").stdout)
    assert data["by"] == ["day", "model", "team"]
    assert data["unpriced"] == ["m2"]
    m1 = next(row for row in data["rows"] if row["model"] == "m1")
    assert (m1["day"], m1["team"], m1["gpu_hours"], m1["cost"]) == (TODAY, "nlp", 0.5, 1.5)
    assert (m1["busy_share"], m1["energy_kwh"], m1["mean_wait_s"]) == (0.25, 1.0, None)
    assert data["total"]["gpu_hours"] == 1.5
    found = rows_of(cli("usage", "--by", "model,team", "--day", "-o", "csv").stdout)
    assert [row["team"] for row in found] == ["vision", "nlp"]
    assert (found[1]["gpu_hours"], found[1]["mean_wait_s"]) == ("0.5", "")
    assert "without a price, so at no cost: m2" in cli("usage").stdout
    by_host = json.loads(cli("usage", "--by", "host", "-o", "json").stdout)["rows"]
    assert sum(by_host[0]["gpu_hours_by_hour"]) == pytest.approx(1.5)


def test_period_is_that_of_the_options(cli: Any) -> None:
    """Days are included; a time before now is of the pool's clock."""
    day = "--since", TODAY, "--until", TODAY
    assert "0.50" in cli("usage", "--by", "agent", *day).stdout
    running = json.loads(cli("usage", "--by", "agent", "--since", "30m", "-o", "json").stdout)
    assert {row["agent"]: row["gpu_hours"] for row in running["rows"]} == {"bob": 0.5, "ann": 0.5}
    nothing = cli("usage", "--since", "2100-01-01", "--until", "2100-02-01").stdout
    assert nothing == (
        "no lease had a GPU in this period: 2100-01-01 to 2100-02-01, whole days of UTC\n"
    )


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("usage", "--by", "agent,host"), "history --host"), (("usage", "--by", "x"), "none of"),
        (("usage", "--since", "soon"), "2026-11-30"), (("usage", "--advise", "--day"), "--since"),
        (("history", "--since", "x"), "no time"), (("history", "export", "file"), "--format"),
        (("history", "export", "--format", "parquet", "-"), "not to stdout"),
        (("history", "--agent", "ann", "export", "x.csv"), "behind export"),
        (("policy", "set", "history_leases=-1"), "not below 0"),
    ],
)  # fmt: skip
def test_wrong_call_says_how_it_is_right(cli: Any, args: tuple[str, ...], word: str) -> None:
    """Exit code 2, with the way out."""
    assert word in cli(*args, expect=2).stderr


def test_period_that_is_none_is_refused(cli: Any) -> None:
    """Exit code 1, with a sentence."""
    assert "before it ends" in cli("usage", "--since", "1h", "--until", "2h", expect=1).stderr


def fill(lab: Pool, peaks: list[int], agent: str = "ann", mb: int = 4000) -> None:
    """Have finished leases of 30 min with these peaks; 0: the peak is not known."""
    for n, peak in enumerate(peaks):
        name = f"{agent}-{n}"
        grant(lab, name, agent, team="nlp", memory_mb=mb)
        t = let(lab, 1000)
        if peak:
            use(lab, "gpu-a", f"{token(name)}={t}:{t}::{peak}:")
        leap(lab, HOUR_MS // 2 - 1000)
        release(lab, name)
        let(lab, LATE_MS)


def test_advice_rests_on_peaks(lab: Pool, cli: Any) -> None:
    """The size that 95 % fitted in, by the nearest rank, rounded up; with its evidence."""
    fill(lab, [*range(1000, 1019), 3000, 0], "cat")
    fill(lab, [3900] * 6, "dan")
    fill(lab, [100] * 4, "eve")
    text = cli("usage", "--advise").stdout
    cat, *_ = [line for line in text.splitlines() if " cat " in line]
    assert cat.split() == [
        "nlp", "cat", "21", "20", "3.9", "GiB", "1009", "MiB", "1018", "MiB", "2.9", "GiB",
        "1.0", "GiB", "1", f"{20 * 0.25 * (1 - 1024 / 4000):.2f}",
    ]  # fmt: skip
    assert "too few" in next(line for line in text.splitlines() if " eve " in line)
    assert "Not known: peaks between two samples" in text
    data = json.loads(cli("usage", "--advise", "-o", "json").stdout)
    by = {row["agent"]: row for row in data["advice"]}
    assert (by["cat"]["size_mb"], by["cat"]["beyond"], by["cat"]["known"]) == (1024, 1, 20)
    assert (by["dan"]["size_mb"], by["dan"]["saved_gpu_hours"]) == (4096, 0.0)
    assert (by["eve"]["size_mb"], by["eve"]["known"], by["ann"]["known"]) == (None, 4, 1)
    assert rows_of(cli("usage", "--advise", "-o", "csv").stdout)[0]["agent"] == "cat"
    recent = json.loads(cli("usage", "--advise", "--since", "10m", "-o", "json").stdout)
    assert {row["agent"] for row in recent["advice"]} == {"eve"}


def test_history_is_shown(lab: Pool, cli: Any) -> None:
    """The last leases that match, in each form; the same records."""
    fill(lab, [0, 0], "cat")
    lines = cli("history").stdout.splitlines()
    assert len(lines) == 4
    assert lines[1].split()[:2] == [TODAY, "13:00"]
    assert "25%" in lines[1]
    assert len(cli("history", "-n", "1").stdout.splitlines()) == 2
    (ann,) = json.loads(cli("history", "--agent", "ann", "-o", "json").stdout)["leases"]
    assert (ann["token"], ann["peak_mb"], ann["gpu_hours"]) == (token("1"), 2000, 0.5)
    assert ann["granted_at"] == f"{TODAY}T12:00:00Z"
    printed = cli("history", "--team", "nlp", "-o", "jsonl").stdout.splitlines()
    assert json.loads(printed[0]) == ann
    assert [row["agent"] for row in rows_of(cli("history", "-o", "csv").stdout)] == [
        "ann", "cat", "cat"
    ]  # fmt: skip
    assert "history_leases" in cli("history", "--outcome", "expired").stdout


def test_lease_that_just_ended_is_counted_and_said_to_be_remembered_soon(
    pool: Pool, server: Server
) -> None:
    """The sums have it at once; the commands say why the history has not."""
    at_noon(pool)
    grant(pool, "1")
    release(pool, "1")
    where = {"REDIS_URL": server.url, "GPU_BROKER_POOL": pool.keys.pool_name}
    since = ("--since", TODAY)
    assert called("usage", *since, **where).stdout.splitlines()[1].split()[:3] == [
        "default", "ann", "1"
    ]  # fmt: skip
    for args in (("history",), ("usage", "--advise")):
        assert "12 s after its end" in called(*args, **where).stdout


def test_what_matches_is_found_in_a_long_history(
    lab: Pool, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reading looks at a part of it; the command goes on."""
    fill(lab, [0] * 6, "cat")
    monkeypatch.setattr(history, "LOOKED_AT", 2)
    assert token("1") in cli("history", "--agent", "ann", "-o", "jsonl").stdout
    printed = cli("history", "-n", "5", "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line)["token"] for line in printed] == [
        token(f"cat-{n}") for n in range(1, 6)
    ]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_export_can_be_read_back(
    lab: Pool, cli: Any, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All records in their order, in several parts; each form has the same values."""
    monkeypatch.setattr(exporting, "PAGE", 2)
    monkeypatch.setattr(parquet_files, "GROUP", 2)
    fill(lab, [0, 1500, 0], "cat")
    file = tmp_path / f"leases.{form}"
    file.write_text("an older one")
    assert cli("history", "export", str(file)).stdout == f"4 finished leases in {file}\n"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    ann = NOON_MS, NOON_MS + HOUR_MS
    if form == "parquet":
        table = parquet.read_table(file)
        assert parquet.ParquetFile(file).num_row_groups == 2
        found = table.to_pylist()
        assert found[0]["ended_at"] == datetime.fromtimestamp(ann[1] / 1000, UTC)
        assert [row["peak_mb"] for row in found] == [2000, None, 1500, None]
    elif form == "csv":
        found = rows_of(file.read_text())
        assert [row["peak_mb"] for row in found] == ["2000", "", "1500", ""]
    else:
        found = [json.loads(line) for line in file.read_text().splitlines()]
        assert [row["peak_mb"] for row in found] == [2000, None, 1500, None]
    assert [row["agent"] for row in found] == ["ann", "cat", "cat", "cat"]
    assert tuple(int(found[0][name]) for name in ("granted_at_ms", "ended_at_ms")) == ann
    assert str(found[0]["devices"]) == "gpu-a=4000"
    assert float(found[0]["gpu_hours"]) == 0.5
    if form != "parquet":
        assert cli("history", "export", "--format", form, "-").stdout == file.read_text()


def test_export_of_nothing_and_of_a_part(cli: Any, tmp_path: Path) -> None:
    """A file without records is whole too; filters hold."""
    for form in ("jsonl", "csv", "parquet"):
        file = tmp_path / f"none.{form}"
        cli("history", "export", "--team", "none", str(file))
        found = parquet.read_table(file).num_rows if form == "parquet" else (
            len(file.read_text().splitlines()))  # fmt: skip
        assert found == (1 if form == "csv" else 0)
    file = tmp_path / "some.jsonl"
    assert "1 finished lease in" in cli("history", "export", "--since", TODAY, str(file)).stdout


def test_export_that_fails_leaves_no_file(cli: Any, tmp_path: Path) -> None:
    """A folder that is not there; the store's error in the middle."""
    gone = tmp_path / "nowhere" / "leases.csv"
    assert "No such file" in cli("history", "export", str(gone), expect=1).stderr
    file = tmp_path / "leases.csv"
    file.mkdir()
    assert cli("history", "export", str(file), expect=1).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["leases.csv"]


def test_without_pyarrow_the_way_to_it_is_said(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other forms need nothing."""
    monkeypatch.delitem(sys.modules, "broker.cli.past.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = cli("history", "export", str(tmp_path / "x.parquet"), expect=1).stderr
    assert "pip install 'gpu-lease-broker[parquet]'" in said
    assert not list(tmp_path.iterdir())
    cli("history", "export", str(tmp_path / "x.csv"))


def test_export_replaces_no_link_and_no_pipe(cli: Any, tmp_path: Path) -> None:
    """A link leads to the new file, and what is no file stays what it is, such as /dev/null."""
    link, file, pipe = (tmp_path / name for name in ("link.csv", "file.csv", "pipe.csv"))
    file.write_text("old")
    link.symlink_to(file)
    cli("history", "export", str(link))
    assert link.is_symlink()
    assert "ann" in file.read_text()
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        cli("history", "export", str(pipe))
        assert os.read(reader, 100_000).decode() == file.read_text()
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_long_export_says_how_far_it_is(
    lab: Pool, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stderr, so that stdout stays the data's."""
    monkeypatch.setattr(exporting, "PAGE", 1)
    monkeypatch.setattr(exporting, "TELL_S", -1.0)
    fill(lab, [0, 0], "cat")
    done = cli("history", "export", str(tmp_path / "x.csv"))
    assert "gpu-broker: 1 finished leases so far" in done.stderr


@pytest.mark.parametrize(
    ("model", "cell"),
    [
        ('=HYPERLINK("http://x","a")', """'=HYPERLINK("http://x","a")"""),
        ("@SUM(1+1)|cmd", "'@SUM(1+1)|cmd"),
        ("-2+3", "'-2+3"),
        ("+A1 B2", "'+A1 B2"),
        ("=A1", "'=A1"),
        ("=A1:B2/C3", "'=A1:B2/C3"),
        ("+1", "'+1"),
        ("=", "'="),
        ("NVIDIA H100 80GB = x", "NVIDIA H100 80GB = x"),
        ("-", "-"),
        ("@here", "@here"),
    ],
)
def test_text_is_no_formula(model: str, cell: str) -> None:
    """A host names its models, and who opens the file in a spreadsheet trusts none of them."""
    (row,) = rows_of(csv_text(("model", "leases"), [{"model": model, "leases": -1}]))
    assert row == {"model": cell, "leases": "-1"}
