"""The limit of what ZeroMQ can do: the same bytes there and back, from a DEALER here to a ROUTER in another process.

Run by benchmarks.sides. A large message goes as one frame or as frames of 1 MiB, whichever is faster.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import zmq

from benchmarks.worker import Work, seconds_per_call, serve, settings_of
from learning_at_home.identity import Identity, z85
from learning_at_home.parent_watch import exit_when_stdin_closes

CHUNK_BYTES = 1 << 20
COPIED_BYTES = 32 * 1024  # below this a copy is cheaper than the bookkeeping of a shared buffer
FLOAT_BYTES = 4
SERVER = "--server"


@dataclass(frozen=True, slots=True)
class Settings:
    hidden_size: int
    plain: bool


class Pair:
    """A DEALER here, and a module's answering process with a ROUTER (`answering_router`)."""

    def __init__(self, module: str, *, plain: bool) -> None:
        server_key, me = Identity.generate(), Identity.generate()
        secret = "" if plain else z85(server_key.curve_secret).decode()
        self._server = subprocess.Popen(
            [sys.executable, "-m", module, SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{secret}\n")
        self._server.stdin.flush()
        endpoint = self._server.stdout.readline().strip()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.dealer = self._context.socket(zmq.DEALER)
        self.dealer.setsockopt(zmq.LINGER, 0)
        if not plain:
            self.dealer.setsockopt(zmq.CURVE_PUBLICKEY, z85(me.curve_public))
            self.dealer.setsockopt(zmq.CURVE_SECRETKEY, z85(me.curve_secret))
            self.dealer.setsockopt(zmq.CURVE_SERVERKEY, z85(server_key.curve_public))
        self.dealer.connect(endpoint)

    def close(self) -> None:
        self.dealer.close()
        self._context.term()
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()


def answering_router() -> zmq.Socket[bytes]:
    """For the answering process: bind with the secret key that the other one writes, and say where."""
    secret = sys.stdin.readline().strip()
    exit_when_stdin_closes()
    router = zmq.Context().socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    if secret:
        router.setsockopt(zmq.CURVE_SERVER, 1)
        router.setsockopt(zmq.CURVE_SECRETKEY, secret.encode())
    router.bind("tcp://127.0.0.1:*")
    print(router.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
    return router


class Echo:
    """The calling side, and the process that answers it."""

    def __init__(self, settings: Settings) -> None:
        self._row_bytes = settings.hidden_size * FLOAT_BYTES
        self._pair = Pair("benchmarks.workers.zeromq_echo", plain=settings.plain)
        self._dealer = self._pair.dealer

    def check(self) -> None:
        """What comes back is what went out."""
        for num_bytes in (1, self._row_bytes, 3 * CHUNK_BYTES):
            sent = os.urandom(num_bytes)
            for frames in ([sent], _chunks(sent)):
                self._exchange(frames, copied=False)
                back = self._exchange(frames, copied=True)
                assert b"".join(back) == sent, "the echo differs"

    def ready(self) -> None:
        """It waits for nobody."""

    def measure(self, work: Work) -> float:
        """Seconds for the bytes of so many rows there and back."""
        payload = os.urandom(work.rows * self._row_bytes)
        whole = self._measured([payload], work)
        if len(payload) <= CHUNK_BYTES:
            return whole
        return min(whole, self._measured(_chunks(payload), work))

    def close(self) -> None:
        self._pair.close()

    def _measured(self, frames: list[bytes], work: Work) -> float:
        copied = len(frames[0]) < COPIED_BYTES
        return seconds_per_call(lambda: self._exchange(frames, copied=copied), work)

    def _exchange(self, frames: list[bytes], *, copied: bool) -> list[bytes]:
        """What came back, when it is copied out of ZeroMQ's buffers."""
        if copied:
            self._dealer.send_multipart(frames)
            return self._dealer.recv_multipart()
        self._dealer.send_multipart(frames, copy=False)
        self._dealer.recv_multipart(copy=False)
        return []


def echo_forever() -> None:
    """The answering process: bind, say where, and send everything back."""
    router = answering_router()
    while True:
        routing_id = router.recv()
        frame = router.recv(copy=False)
        if not frame.more and len(frame) < COPIED_BYTES:
            router.send(routing_id, zmq.SNDMORE)
            router.send(frame.bytes)
            continue
        frames = [frame]
        while frames[-1].more:
            frames.append(router.recv(copy=False))
        router.send(routing_id, zmq.SNDMORE)
        router.send_multipart(frames, copy=False)


def _chunks(payload: bytes) -> list[bytes]:
    return [payload[start : start + CHUNK_BYTES] for start in range(0, len(payload), CHUNK_BYTES)]


if __name__ == "__main__":
    if sys.argv[1:] == [SERVER]:
        echo_forever()
    else:
        serve(lambda: Echo(settings_of(Settings)))
