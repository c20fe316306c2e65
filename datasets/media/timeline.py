"""Timestamps that restart in the middle, as in two recordings joined, put on one timeline as FFmpeg does."""

from __future__ import annotations

import av

JUMP_SECONDS = 10.0  # FFmpeg's -dts_delta_threshold: where all streams step further forward it is no pause
BACK_SECONDS = 0.1  # FFmpeg's, for steps backward
LATE_SECONDS = 1.0  # how far on a stream's next packet may be that still belongs to what came before a join
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
        self._shifts: dict[int, float] = {}  # stream -> that of its last packet
        self._next: dict[int, float] = {}  # stream -> when its next packet is due, on the one line

    def place(self, packet: av.Packet) -> None:
        """Moves a packet's time stamps in place."""
        stamp = packet.dts if packet.dts is not None else packet.pts
        if not self.restarts or stamp is None or packet.time_base is None:
            return
        tick = float(packet.time_base)
        index = packet.stream.index
        shift, due = self._shift, self._next.get(index)
        if due is not None and -BACK_SECONDS <= stamp * tick + self._shifts[index] - due <= LATE_SECONDS:
            shift = self._shifts[
                index
            ]  # where another stream restarted first, this one's last packets come late
        at = stamp * tick + shift
        if due is not None and (at < due - BACK_SECONDS or at > max(self._next.values()) + JUMP_SECONDS):
            shift = self._shift = due - stamp * tick
            at = due
            self.joins.append(due)
        self._shifts[index] = shift
        self._next[index] = at + (packet.duration or 0) * tick
        if shift:
            ticks = round(shift / tick)
            packet.dts = None if packet.dts is None else packet.dts + ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks
