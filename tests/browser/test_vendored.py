"""Vendored files: as they came, with their licence, and in the wheel."""

from __future__ import annotations

import hashlib
import re

from broker.dashboard import FOLDER

VENDOR = FOLDER / "vendor"

ROW = re.compile(
    r"^\| `(\S+)` \| (\S+) (\S+) \| `\S+` \| \S+, `(\S+)` \| `([0-9a-f]{64})` \|$", re.MULTILINE
)


def test_every_vendored_file_has_its_licence_and_digest() -> None:
    """vendor/README.md says both, and no file is there that it does not name."""
    named = {"README.md"}
    for file, _, _, licence, digest in ROW.findall((VENDOR / "README.md").read_text()):
        assert hashlib.sha256((VENDOR / file).read_bytes()).hexdigest() == digest, file
        assert "Permission" in (VENDOR / licence).read_text() or licence.startswith("lit-html")
        named |= {file, licence}
    assert named == {path.name for path in VENDOR.iterdir()}


def test_page_loads_nothing_from_elsewhere() -> None:
    """No address of another server in anything that is ours."""
    for path in FOLDER.glob("*.*"):
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://", text), path.name
        assert "innerHTML" not in text, path.name
        assert not re.search(r"\son\w+=|\sstyle=", text), path.name
