"""Broker: the HTTP API on port 8014, the reporter of devices, the command line."""

__version__ = "0.1.0"
