"""`gpu-broker undrain` is in `drain`, of which it is the opposite."""

from broker.cli.commands.drain import undrain

__all__ = ["undrain"]
