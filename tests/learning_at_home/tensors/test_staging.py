"""From a GPU; without one, that nothing happens."""

from __future__ import annotations

import pytest
import torch

from learning_at_home.tensors.frames import from_frames, to_frames
from learning_at_home.tensors.staging import to_cpu
from learning_at_home.wire.messages import CODECS, Codec

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_on_the_cpu_nothing_is_moved() -> None:
    tensor = torch.randn(3)
    assert to_cpu(tensor) is tensor


@pytest.mark.gpu
@needs_cuda
def test_a_tensor_of_a_gpu_arrives_whole_in_page_locked_memory() -> None:
    tensor = torch.randn(1_000, 300)
    arrived = to_cpu(tensor.cuda() * 2)
    assert torch.equal(arrived, tensor * 2)
    assert arrived.is_pinned()


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("codec", CODECS)
def test_frames_of_a_tensor_on_a_gpu_are_those_of_the_same_on_the_cpu(codec: Codec) -> None:
    tensor = torch.randn(1_000, 300)
    spec, frames = to_frames(tensor, codec)
    spec_of_gpu, frames_of_gpu = to_frames(tensor.cuda(), codec)
    arrived, of_gpu = (
        from_frames(spec, [bytearray(frame) for frame in sent], codec) for sent in (frames, frames_of_gpu)
    )
    assert spec_of_gpu == spec
    torch.testing.assert_close(of_gpu, arrived)
