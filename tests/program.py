"""`gpu-broker` in this process: what a command prints and how it ends, without an interpreter's
start. Where signals, a terminal, children or the start itself are the point, a test starts
`tests.api.brokers.PROGRAM`.
"""

from __future__ import annotations

import os
from subprocess import CompletedProcess

from click.testing import CliRunner

from broker.cli import main
from tests.api.brokers import environment


def called(*args: object, **settings: str) -> CompletedProcess[str]:
    """One call, under these settings and nothing of this shell's."""
    words = [str(arg) for arg in args]
    env = dict.fromkeys(os.environ) | environment(**settings)  # None: not set
    done = CliRunner().invoke(main, words, "", env, catch_exceptions=False, prog_name="gpu-broker")
    return CompletedProcess(words, done.exit_code, done.stdout, done.stderr)
