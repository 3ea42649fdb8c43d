"""GPUs of this machine, sampled from one source that the settings choose at start."""

from broker.devices.choose import DeviceSourceError, DriverLimits, choose
from broker.devices.last_known import UNNAMED
from broker.devices.sample import DeviceSample, Holding, Limiting, Sample, Source, State
from broker.devices.smi.program import find_smi
from broker.devices.trouble import trouble_of, warning_of, without_numbers

__all__ = [
    "UNNAMED", "DeviceSample", "DeviceSourceError", "DriverLimits", "Holding", "Limiting", "Sample",
    "Source", "State", "choose", "find_smi", "trouble_of", "warning_of", "without_numbers",
]  # fmt: skip
