"""GPUs of this machine, sampled from one source that the settings choose at start."""

from broker.devices.choose import DeviceSourceError, choose
from broker.devices.sample import DeviceSample, Sample, Source, State

__all__ = ["DeviceSample", "DeviceSourceError", "Sample", "Source", "State", "choose"]
