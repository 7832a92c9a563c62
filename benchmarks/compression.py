"""What a codec of the wire saves and costs: bytes, time to encode and to decode, and how far its numbers are off.

One process, one torch thread, and this thread's CPU time, so that other work on the machine changes little. The codecs
take turns. Encoding makes frames of a tensor, decoding makes a tensor of frames and checks that it is finite.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
import zmq

from benchmarks.command_line import Options, options_of, parser, size
from benchmarks.machine import machine
from benchmarks.report import shown
from learning_at_home.tensors.frames import from_frames_checked, to_frames
from learning_at_home.wire.messages import CODECS, Codec, TensorSpec

HEADINGS = ("tensor", "codec", "bytes", "share", "encode", "decode", "largest error", "mean error", "pays below")
SAMPLE_S = 0.1  # of the many calls of which the mean is one sample


@dataclass(frozen=True, slots=True)
class Figures:
    """One codec on one tensor. Errors are root mean squares and the largest, both as shares of the tensor's own."""

    tensor: str
    codec: Codec
    size_bytes: int
    share: float  # of the bytes without a codec
    encode_s: float
    decode_s: float
    largest_error: float
    mean_error: float
    pays_below: float | None  # bytes per second of a link, one way: a slower one carries the tensor sooner encoded


@dataclass(frozen=True, slots=True)
class Way:
    """A tensor with one codec, there and back."""

    tensor: torch.Tensor
    codec: Codec
    spec: TensorSpec
    frames: tuple[zmq.Frame, ...]

    def encode(self) -> None:
        to_frames(self.tensor, self.codec)

    def decode(self) -> None:
        from_frames_checked(self.spec, self.frames, self.codec)


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parser("compression", __doc__.splitlines()[0])
    flags.add_argument("--rows", type=size, nargs="+", default=[1, 64, 2048], help="of the tensors (1 64 2048)")
    flags.add_argument("--features", type=size, default=1024, help="of each row, float32 (1024)")
    given = flags.parse_args(arguments)
    options = options_of(given)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    started = time.monotonic()
    figures = [line for rows in given.rows for line in measure(torch.randn(rows, given.features), options)]
    print(table(figures))
    if options.json is not None:
        document = {
            "benchmark": "compression",
            "machine": machine(),
            "seconds": round(time.monotonic() - started, 1),
            "rows": [{"row": f"{line.codec}-{line.tensor}", **asdict(line)} for line in figures],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    return 0


def measure(tensor: torch.Tensor, options: Options) -> Iterator[Figures]:
    """The figures of every codec, the fastest of `runs` samples each."""
    ways = [_way(tensor, codec) for codec in CODECS]
    sample_s = SAMPLE_S / 10 if options.quick else SAMPLE_S
    samples = [
        [(seconds(way.encode, sample_s), seconds(way.decode, sample_s)) for way in ways] for _ in range(options.runs)
    ]
    plain = ways[0].spec.num_bytes
    plain_s = sum(min(turn[0][step] for turn in samples) for step in (0, 1))
    for position, way in enumerate(ways):
        encode_s, decode_s = (min(turn[position][step] for turn in samples) for step in (0, 1))
        size_bytes = sum(map(len, way.frames))
        arrived, finite = from_frames_checked(way.spec, way.frames, way.codec)
        assert finite
        errors = arrived.double() - tensor.double()
        yield Figures(
            tensor=str(way.spec),
            codec=way.codec,
            size_bytes=size_bytes,
            share=size_bytes / plain,
            encode_s=encode_s,
            decode_s=decode_s,
            largest_error=(errors.abs().max() / tensor.abs().max()).item(),
            mean_error=(errors.norm() / tensor.double().norm()).item(),
            pays_below=(plain - size_bytes) / max(encode_s + decode_s - plain_s, 1e-9) if size_bytes < plain else None,
        )


def seconds(work: Callable[[], None], sample_s: float) -> float:
    """CPU seconds of one call, as the mean of as many as take `sample_s`."""
    work()
    calls, spent = 0, 0.0
    while spent < sample_s:
        calls = calls * 2 or 1
        started = time.thread_time()
        for _ in range(calls):
            work()
        spent = time.thread_time() - started
    return spent / calls


def table(figures: Sequence[Figures]) -> str:
    """For people, and for docs/performance.md."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    for line in figures:
        cells = (
            line.tensor,
            line.codec,
            f"{line.size_bytes:,}",
            f"{line.share:.0%}",
            shown(line.encode_s, "s"),
            shown(line.decode_s, "s"),
            f"{line.largest_error:.1e}" if line.largest_error else "0",
            f"{line.mean_error:.1e}" if line.mean_error else "0",
            f"{shown(line.pays_below, 'bytes')}/s" if line.pays_below else "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _way(tensor: torch.Tensor, codec: Codec) -> Way:
    spec, frames = to_frames(tensor, codec)
    return Way(tensor, codec, spec, tuple(zmq.Frame(bytes(frame)) for frame in frames))


if __name__ == "__main__":
    sys.exit(main())
