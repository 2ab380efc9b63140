"""Which packets of the corpus were seen, by the bytes that came."""

from __future__ import annotations

from collections import defaultdict

from nlbfarm.testing.conformance.packet import Packet

__all__ = ["Sightings"]

_Key = tuple[int, int]


class Sightings:
    """Tells from the bytes of a packet behind the filter which packet of the corpus that was."""

    def __init__(self) -> None:
        self.passed: set[int] = set()
        """Packets that were seen as they were sent."""
        self.whole: set[int] = set()
        """Datagrams that came in fragments and were seen in one piece."""
        self.changed: dict[int, bytes] = {}
        """Packets that were seen, but not as they were sent."""
        self.repeated: set[int] = set()
        """Packets that were seen more often than they were sent."""
        self._sent: defaultdict[bytes, list[int]] = defaultdict(list)
        self._unseen: dict[bytes, list[int]] = {}
        self._by_number: dict[_Key, Packet] = {}
        self._pieces: defaultdict[int, dict[int, bytes]] = defaultdict(dict)

    def sent(self, packet: Packet, data: bytes) -> None:
        """Note that ``packet`` was sent, as these bytes."""
        data = data[: _length(data)]
        self._sent[data].append(packet.index)
        self._unseen.setdefault(data, []).append(packet.index)
        key = _key(data)
        if key is not None:
            self._by_number.setdefault(key, packet)
        if packet.datagram is not None:
            offset, payload = _piece(data)
            self._pieces[packet.datagram].setdefault(offset, payload)

    def see(self, data: bytes) -> None:
        """Note that these bytes were seen; bytes of nobody's are passed over."""
        unseen = self._unseen.get(data)
        if unseen is not None:
            if unseen:
                self.passed.add(unseen.pop(0))
            else:
                self.repeated.add(self._sent[data][0])
            return
        packet = self._by_number.get(_key(data) or (0, 0))
        if packet is None:
            return
        if packet.datagram is None:
            self.passed.add(packet.index)
            self.changed[packet.index] = data
            return
        pieces = self._pieces[packet.datagram]
        payload = b"".join(piece for _, piece in sorted(pieces.items()))
        self.whole.add(packet.datagram)
        if _piece(data) != (0, payload):
            self.changed[packet.index] = data


def _length(data: bytes) -> int:
    """Return how long the packet says it is: a frame may be padded."""
    if len(data) >= 4 and data[0] >> 4 == 4:
        return int.from_bytes(data[2:4], "big")
    if len(data) >= 6 and data[0] >> 4 == 6:
        return 40 + int.from_bytes(data[4:6], "big")
    return len(data)


def _key(data: bytes) -> _Key | None:
    if len(data) >= 20 and data[0] >> 4 == 4:
        return 4, int.from_bytes(data[4:6], "big")
    if len(data) >= 40 and data[0] >> 4 == 6:
        return 6, int.from_bytes(data[:4], "big") & 0xFFFFF
    return None


def _piece(data: bytes) -> tuple[int, bytes]:
    """Return offset and payload of a fragment without options, or of a whole packet."""
    if data[0] >> 4 == 4:
        return (int.from_bytes(data[6:8], "big") & 0x1FFF) * 8, data[20:]
    if data[6] == 44:
        return int.from_bytes(data[42:44], "big") & 0xFFF8, data[48:]
    return 0, data[40:]
