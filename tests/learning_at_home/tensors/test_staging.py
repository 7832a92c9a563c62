"""To a GPU and back; what needs none works without one."""

from __future__ import annotations

import pytest
import torch

from learning_at_home.tensors.frames import from_frames, from_frames_checked, to_frames
from learning_at_home.tensors.staging import to_cpu, to_device
from learning_at_home.wire.messages import CODECS, Codec

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Frame:
    def __init__(self, content: memoryview) -> None:
        self.buffer = memoryview(bytearray(content))


def test_on_the_cpu_nothing_is_moved() -> None:
    tensor = torch.randn(3)
    assert to_cpu(tensor) is tensor
    assert to_device(tensor, torch.device("cpu")) is tensor


@pytest.mark.gpu
@needs_cuda
def test_a_tensor_goes_to_a_gpu_and_comes_back() -> None:
    tensor = torch.randn(1_000, 300)
    on_gpu = to_device(tensor, torch.device("cuda"))
    assert on_gpu.is_cuda
    assert torch.equal(to_cpu(on_gpu * 2), tensor * 2)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("codec", CODECS)
def test_frames_of_a_tensor_on_a_gpu_are_those_of_the_same_on_the_cpu(codec: Codec) -> None:
    tensor = torch.randn(1_000, 300)
    spec, frames = to_frames(tensor, codec)
    spec_of_gpu, frames_of_gpu = to_frames(tensor.cuda(), codec)
    arrived, of_gpu = (
        from_frames(spec, [Frame(frame) for frame in sent], codec)  # type: ignore[misc]
        for sent in (frames, frames_of_gpu)
    )
    assert spec_of_gpu == spec
    torch.testing.assert_close(of_gpu, arrived)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(1, 64), (1_000, 300)])
def test_frames_are_joined_in_page_locked_memory(shape: tuple[int, ...], codec: Codec) -> None:
    spec, frames = to_frames(torch.randn(shape), codec)
    received = [Frame(frame) for frame in frames]
    arrived, finite = from_frames_checked(spec, received, codec, pinned=True)  # type: ignore[arg-type]
    assert finite
    assert arrived.is_pinned()
    assert torch.equal(arrived, from_frames(spec, received, codec))  # type: ignore[arg-type]
