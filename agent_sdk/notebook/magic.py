"""Magic `%%gpu`: a cell that runs under a lease of its own."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from agent_sdk.errors import LeaseError
from agent_sdk.shared import lease

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent_sdk.request import LeaseOptions

ABSENT = object()


@magics_class
class GpuMagics(Magics):
    """Magics of `agent_sdk.notebook`."""

    @magic_arguments()
    @argument("--memory", help="Memory of each GPU: 8GiB.")
    @argument("--gpus", type=int, help="So many whole GPUs, not a share of one.")
    @argument("--wait", type=float, default=0.0, help="Seconds to wait in the queue (0).")
    @argument("--host", help="The host; any: any. Default: this machine.")
    @argument("--agent", default="notebook", help="The agent that asks (notebook).")
    @cell_magic
    def gpu(self, line: str, cell: str) -> None:
        """Run a cell under a lease, which is given back at the end of the cell.

        In the cell `lease` is the lease, and its variables are in the environment. CUDA reads them
        when a process first uses a GPU: later cells of the process cannot move to another one.

        Examples::

            %%gpu --memory 8GiB --wait 600
            answer = model.generate(prompt)
        """
        given: Any = parse_argstring(self.gpu, line)
        shell: Any = self.shell
        try:
            with (
                lease(given.agent, **_asked(given)) as held,
                _set(os.environ, held.env()),
                _set(shell.user_ns, {"lease": held}),
            ):
                done = shell.run_cell(cell)
        except LeaseError as error:
            raise UsageError(f"%%gpu: {error}") from None
        if not done.success:
            raise UsageError("%%gpu: the cell failed, as is shown above; its lease is given back")


def _asked(given: Any) -> LeaseOptions:
    """Return the request that the options make."""
    ask: LeaseOptions = {"wait_s": given.wait}
    if given.memory:
        ask["memory"] = given.memory
    if given.gpus is not None:  # whole, and of any size unless one is named
        ask |= {"devices": given.gpus, "exclusive": True, "memory": given.memory or "1MiB"}
    if given.host:
        ask["host"] = given.host
    return ask


@contextmanager
def _set(names: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Set names for a while; afterwards all are as they were."""
    before = {name: names.get(name, ABSENT) for name in values}
    names.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is ABSENT:
                names.pop(name, None)
            else:
                names[name] = value
