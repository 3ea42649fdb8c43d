"""`gpu-broker forget`: defined in `drain`, because the two share their argument."""

from broker.cli.commands.drain import forget

__all__ = ["forget"]
