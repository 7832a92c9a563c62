"""ZAP (ZeroMQ RFC 27): says whose connection each one is. Every key may connect while projects are open.

libzmq asks over an in-process socket; the answer's user id comes back with every message of that connection.
"""

from __future__ import annotations

import zmq

from learning_at_home.errors import WireError

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
MAX_REQUESTS_PER_TURN = 256


class Authenticator:
    """Answers libzmq's questions in the thread that polls `socket`."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ZAP_ENDPOINT)

    def answer_all(self) -> None:
        """Answer the questions that wait."""
        for _ in range(MAX_REQUESTS_PER_TURN):
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            delimiter = parts.index(b"")
            envelope, question = parts[: delimiter + 1], parts[delimiter + 1 :]
            version, request_id, _domain, _address, _identity, mechanism, *credentials = question
            known = version == b"1.0" and mechanism == b"CURVE" and len(credentials) == 1 and len(credentials[0]) == 32
            verdict = [b"200", b"OK", credentials[0].hex().encode()] if known else [b"400", b"CURVE only", b""]
            self.socket.send_multipart([*envelope, version, request_id, *verdict, b""], zmq.NOBLOCK)


def caller_key(frame: zmq.Frame) -> str:
    """The CURVE public key, in hex, of the connection that a received frame came by. Raises WireError without one."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError as error:
        raise WireError("a message from a connection without a key") from error
