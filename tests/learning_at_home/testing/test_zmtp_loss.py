"""Whole messages leave the stream, and nothing else."""

import random

import pytest

from learning_at_home.errors import UsageError
from learning_at_home.testing.zmtp_loss import COMMAND, LONG, MORE, MessageLoss

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = bytes([COMMAND, 5]) + b"READY"


def frame(data: bytes, more: bool = False) -> bytes:
    if len(data) > 255:
        return bytes([LONG | more * MORE]) + len(data).to_bytes(8, "big") + data
    return bytes([more * MORE, len(data)]) + data


def message(number: int) -> bytes:
    return frame(b"head %d" % number, more=True) + frame(b"", more=True) + frame(b"%03d" % number * 200)


def filtered(stream: bytes, share: float, step: int, seed: int = 0) -> tuple[bytes, MessageLoss]:
    loss = MessageLoss(share, random.Random(seed))
    return b"".join(loss.pass_on(stream[at : at + step]) for at in range(0, len(stream), step)), loss


def test_without_loss_all_passes():
    stream = GREETING + READY + b"".join(map(message, range(5)))
    assert filtered(stream, 0.0, 7)[0] == stream


@pytest.mark.parametrize("step", [1, 2, 9, 64, 1_000, 1_000_000])
def test_whole_messages_are_lost_however_the_bytes_come(step):
    stream = GREETING + READY + b"".join(map(message, range(200)))
    passed, loss = filtered(stream, 0.3, step)
    kept = [number for number in range(200) if message(number) in passed]
    assert passed == GREETING + READY + b"".join(map(message, kept))
    assert (loss.num_messages, loss.num_lost) == (200, 200 - len(kept))
    assert 40 < loss.num_lost < 80
    assert kept[0] == 0, "the first is the greeting"


def test_a_seed_loses_the_same_messages():
    stream = GREETING + b"".join(map(message, range(100)))
    assert filtered(stream, 0.3, 50, seed=1)[0] == filtered(stream, 0.3, 3, seed=1)[0]
    assert filtered(stream, 0.3, 50, seed=1)[0] != filtered(stream, 0.3, 50, seed=2)[0]


def test_commands_pass_even_within_a_lost_message():
    ping = bytes([COMMAND, 7]) + b"\4PING\0\0"
    stream = GREETING + frame(b"greeting")
    parts = [frame(b"a", more=True) + ping + frame(b"b") for _ in range(50)]
    passed, loss = filtered(stream + b"".join(parts), 0.5, 11)
    assert passed.count(ping) == 50
    assert passed.count(frame(b"b")) == 50 - loss.num_lost > 0


@pytest.mark.parametrize("head", [GREETING.replace(b"NULL\0", b"CURVE"), b"GET / HTTP/1.1".ljust(64)])
def test_a_stream_whose_messages_cannot_be_seen_is_refused(head):
    with pytest.raises(UsageError, match="unencrypted"):
        MessageLoss(0.1, random.Random(0)).pass_on(head)
