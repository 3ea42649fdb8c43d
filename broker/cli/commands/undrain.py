"""`gpu-broker undrain`: defined in `drain`, its opposite."""

from broker.cli.commands.drain import undrain

__all__ = ["undrain"]
