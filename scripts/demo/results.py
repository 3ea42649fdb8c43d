"""The folder of the demonstrations' results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

FOLDER = Path("orchestrator_demo_results")

CYCLES = {True: "safe_mode_cycle_on.json", False: "safe_mode_cycle_off.json"}
"""SAFE_MODE -> its cycle's file."""


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Give a script `--output-dir`."""
    parser.add_argument(
        "--output-dir", type=Path, default=FOLDER, help=f"where files go (default {FOLDER}/)"
    )


def write(path: Path, data: dict[str, Any]) -> None:
    """Write JSON, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n")
    print(f"wrote {path}")
