"""Timestamps that restart in the middle, as in two recordings joined, put on one timeline as FFmpeg does."""

from __future__ import annotations

import av

JUMP_SECONDS = 10.0  # FFmpeg's -dts_delta_threshold: where all streams step further forward it is no pause
BACK_SECONDS = 0.1  # FFmpeg's, for steps backward
RESTARTING_FORMATS = frozenset({"mpeg", "mpegts"})


class Timeline:
    """Moves the packets of a file in reading order so that its time stamps go on; a function of what came before.

    Args:
        restarts: Whether the format's timestamps may restart; otherwise nothing is moved.

    Attributes:
        restarts: The same.
        joins: Where timestamps restarted, in seconds on that timeline.
    """

    def __init__(self, restarts: bool) -> None:
        self.restarts = restarts
        self.joins: list[float] = []
        self._shift = 0.0
        self._next: dict[int, float] = {}  # stream -> when its next packet is due, on the one line

    def place(self, packet: av.Packet) -> None:
        """Moves a packet's time stamps in place."""
        stamp = packet.dts if packet.dts is not None else packet.pts
        if not self.restarts or stamp is None or packet.time_base is None:
            return
        tick = float(packet.time_base)
        at = stamp * tick + self._shift
        due = self._next.get(packet.stream.index)
        if due is not None and (at < due - BACK_SECONDS or at > max(self._next.values()) + JUMP_SECONDS):
            self._shift += due - at
            at = due
            self.joins.append(due)
        self._next[packet.stream.index] = at + (packet.duration or 0) * tick
        if self._shift:
            ticks = round(self._shift / tick)
            packet.dts = None if packet.dts is None else packet.dts + ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks
