"""A device's clock in terms of the host's."""

from __future__ import annotations


class ClockMap:
    """Maps the device's clock to the host's: the shortest way seen is the truest, and the clocks may drift apart slowly.

    Args:
        jump_ns: more than this is a device whose clock was set (a simulator that was slow, a file that starts again), not a late message.
    """

    _DRIFT = 0.001  # s per s by which the estimate may give way

    def __init__(self, jump_ns: int = 20_000_000) -> None:
        self._jump_ns = jump_ns
        self._offset_ns: int | None = None
        self._device_ns = 0

    def host_ns(self, device_ns: int, arrival_ns: int) -> int:
        """Returns the host's time (ns since the epoch) at which the device measured what arrived at `arrival_ns`."""
        offset_ns = arrival_ns - device_ns
        if self._offset_ns is None or offset_ns < self._offset_ns or offset_ns - self._offset_ns > self._jump_ns:
            self._offset_ns = offset_ns
        else:
            self._offset_ns = min(offset_ns, self._offset_ns + int(self._DRIFT * (device_ns - self._device_ns)))
        self._device_ns = device_ns
        return device_ns + self._offset_ns
