"""`gpu-broker completion`: the script by which a shell completes our commands and names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from broker.cli import main
from broker.text.screen import dump

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script by which a shell completes commands, options, hosts, GPUs and tokens.

    \b
    Examples:
      gpu-broker completion bash >> ~/.bashrc
      gpu-broker completion zsh >> ~/.zshrc
      gpu-broker completion fish > ~/.config/fish/completions/gpu-broker.fish
    """
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - click has these three
    dump(found(main, {}, "gpu-broker", "_GPU_BROKER_COMPLETE").source())
