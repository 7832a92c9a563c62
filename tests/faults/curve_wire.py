"""ZeroMQ's wire with CURVE, written out: for senders that libzmq would not let do what they do.

libzmq keeps a message back until its last part is there; here parts leave as they are made. Knows the protocol (ZMTP
3.1, RFC 37; CURVE, RFC 26), nothing of what our messages say. Synchronous until hands are shaken; then `pump` sends
what the socket takes.
"""

from __future__ import annotations

import os
import socket
import struct

from nacl.bindings import (
    crypto_box,
    crypto_box_afternm,
    crypto_box_beforenm,
    crypto_box_keypair,
    crypto_box_open,
)

from learning_at_home.identity import Identity, curve_public_key

MORE, COMMAND = 0x01, 0x02  # flags of a part, inside the encryption
TIMEOUT_S = 10.0


class CurveWire:
    """One connection of a caller to a node, through its handshake."""

    def __init__(self, public_key: bytes, endpoint: str) -> None:
        self.identity = Identity.generate()
        host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
        self._unsent = memoryview(b"")
        self._nonce = 0
        self._shake_hands(curve_public_key(public_key))
        self.socket.setblocking(False)

    def close(self) -> None:
        self.socket.close()

    def queue(self, part: bytes, flags: int = 0) -> None:
        """Encrypt a part; `pump` sends it. Only when nothing is unsent."""
        assert self.is_idle
        sealed = crypto_box_afternm(bytes([flags]) + part, b"CurveZMQMESSAGEC" + self._next_nonce(), self._key)
        body = b"\x07MESSAGE" + struct.pack(">Q", self._nonce) + sealed
        self._unsent = memoryview(_framed(body))

    @property
    def is_idle(self) -> bool:
        return not self._unsent

    def pump(self) -> int:
        """Send what the socket takes now; how many bytes. Raises ConnectionError when the node has ended it."""
        if not self._unsent:
            return 0
        try:
            sent = self.socket.send(self._unsent)
        except BlockingIOError:
            return 0
        self._unsent = self._unsent[sent:]
        return sent

    def _shake_hands(self, server_key: bytes) -> None:
        transient_public, transient_secret = crypto_box_keypair()
        self.socket.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32))
        self._receive(64)
        nonce = self._next_nonce()
        hello = crypto_box(bytes(64), b"CurveZMQHELLO---" + nonce, server_key, transient_secret)
        self.socket.sendall(_command(b"\x05HELLO\x01\0" + bytes(72) + transient_public + nonce + hello))
        welcome = self._receive_command(b"\x07WELCOME")
        opened = crypto_box_open(welcome[16:], b"WELCOME-" + welcome[:16], server_key, transient_secret)
        server_transient, cookie = opened[:32], opened[32:]
        self._key = crypto_box_beforenm(server_transient, transient_secret)
        vouch_nonce = os.urandom(16)
        vouch = crypto_box(
            transient_public + server_key, b"VOUCH---" + vouch_nonce, server_transient, self.identity.curve_secret
        )
        metadata = b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER" + b"\x08Identity" + bytes(4)
        nonce = self._next_nonce()
        initiate = crypto_box_afternm(
            self.identity.curve_public + vouch_nonce + vouch + metadata, b"CurveZMQINITIATE" + nonce, self._key
        )
        self.socket.sendall(_command(b"\x08INITIATE" + cookie + nonce + initiate))
        self._receive_command(b"\x05READY")

    def _next_nonce(self) -> bytes:
        self._nonce += 1
        return struct.pack(">Q", self._nonce)

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise ConnectionError("the node ended the handshake")
            data += more
        return data

    def _receive_command(self, name: bytes) -> bytes:
        flags = self._receive(1)[0]
        size = self._receive(1)[0] if flags == 4 else struct.unpack(">Q", self._receive(8))[0]
        body = self._receive(size)
        assert body.startswith(name), body
        return body[len(name) :]


def _command(body: bytes) -> bytes:
    return b"\x04" + bytes([len(body)]) + body if len(body) < 256 else b"\x06" + struct.pack(">Q", len(body)) + body


def _framed(body: bytes) -> bytes:
    return b"\0" + bytes([len(body)]) + body if len(body) < 256 else b"\x02" + struct.pack(">Q", len(body)) + body
