"""`gpu-broker forget` is in `drain`, with which it shares its argument."""

from broker.cli.commands.drain import forget

__all__ = ["forget"]
