"""Lose whole messages of an unencrypted ZMTP 3 stream, and nothing else of it. Pure: bytes in, bytes out.

Where a message ends is told by the frames' MORE flag. CURVE encrypts it: in an encrypted stream nobody on the way can
tell the messages apart, so there calls are lost at the trainer instead (lost_calls.py). Commands (the handshake,
heartbeats) always pass, and so does the first message: it is a greeting. Source: rfc.zeromq.org/spec/23.
"""

from __future__ import annotations

import random

from learning_at_home.errors import UsageError

GREETING_BYTES = 64
MECHANISM = slice(12, 32)  # of the greeting
MORE, LONG, COMMAND = 1, 2, 4


class MessageLoss:
    """One direction of a connection."""

    def __init__(self, share: float, chance: random.Random) -> None:
        self.share = share  # may be changed
        self.num_messages = 0  # begun, the lost ones among them
        self.num_lost = 0
        self._random = chance
        self._head = bytearray()  # the greeting, or a frame's header, as far as it has come
        self._greeted = False
        self._left = 0  # bytes of the present frame
        self._within = False  # a message
        self._loses = False  # this message
        self._drops = False  # this frame

    def pass_on(self, data: bytes) -> bytes:
        """What of the next bytes goes on. Raises UsageError when the stream is encrypted or no ZMTP."""
        passed = bytearray()
        position = 0
        while position < len(data):
            if self._left:
                taken = min(self._left, len(data) - position)
                if not self._drops:
                    passed += data[position : position + taken]
                self._left -= taken
                position += taken
                continue
            wanted = self._wanted()
            part = data[position : position + wanted - len(self._head)]
            self._head += part
            position += len(part)
            if not self._greeted:
                passed += part  # at once: either end waits for the other's first bytes before it sends the rest
            if len(self._head) == self._wanted():
                head, self._head = bytes(self._head), bytearray()
                self._begin(head)
                if len(head) < GREETING_BYTES and not self._drops:
                    passed += head
        return bytes(passed)

    def _wanted(self) -> int:
        """How long the greeting or the frame's header is, as far as is known."""
        if not self._greeted:
            return GREETING_BYTES
        if not self._head:
            return 1
        return 9 if self._head[0] & LONG else 2

    def _begin(self, head: bytes) -> None:
        if not self._greeted:
            self._check_greeting(head)
            self._greeted = True
            return
        flags = head[0]
        self._left = int.from_bytes(head[1:], "big")
        if flags & COMMAND:
            self._drops = False
            return
        if not self._within:
            self.num_messages += 1
            self._loses = self.num_messages > 1 and self._random.random() < self.share
            self.num_lost += self._loses
        self._drops = self._loses
        self._within = bool(flags & MORE)

    def _check_greeting(self, greeting: bytes) -> None:
        mechanism = greeting[MECHANISM].rstrip(b"\0")
        if greeting[0] != 0xFF or mechanism != b"NULL":
            raise UsageError(
                f"only messages of unencrypted ZeroMQ can be lost by a proxy, and this connection speaks "
                f"{mechanism.decode('ascii', 'replace')!r}: it does not see where one ends; use lost_calls()"
            )
