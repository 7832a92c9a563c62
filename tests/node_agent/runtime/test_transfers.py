"""Rows to the device and back: in order, whole, and padded where a product needs it."""

import pytest
import torch

from node_agent.runtime.transfers import Padding, to_cpu, to_device

CPU = torch.device("cpu")


def test_parts_arrive_one_after_the_other():
    parts = [torch.randn(2, 3), torch.randn(1, 3), torch.randn(4, 3)]

    assert torch.equal(to_device(parts, CPU), torch.cat(parts))


def test_on_the_cpu_one_part_is_not_copied():
    part = torch.randn(2, 3)

    assert to_device([part], CPU) is part
    assert to_cpu(part) is part


@pytest.mark.parametrize("num_rows,longest", [([2, 1, 3], 3), ([0, 2, 0, 5, 1], 5), ([4, 4], 4), ([1], 1), ([0, 1], 6)])
@pytest.mark.parametrize("row_shape", [(3,), (2, 3)])
def test_padding_puts_zeros_behind_the_rows_of_each_and_takes_them_away_again(num_rows, longest, row_shape):
    rows = torch.randn(sum(num_rows), *row_shape)
    padding = Padding(num_rows, longest, CPU)

    padded = padding.pad(rows)

    assert padded.shape == (len(num_rows), longest, *row_shape)
    parts = torch.split(rows, num_rows)
    for slot, own in enumerate(parts):
        assert torch.equal(padded[slot, : len(own)], own)
        assert not padded[slot, len(own) :].any()
    assert torch.equal(padding.strip(padded), rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rows_come_back_from_a_gpu_as_they_went_also_while_it_is_busy():
    gpu = torch.device("cuda:0")
    busy = torch.randn(4096, 4096, device=gpu)
    sent = []
    for _ in range(50):  # page-locked memory is used again, and again
        parts = [torch.randn(1000, 64), torch.randn(24, 64)]
        busy = busy @ busy / 4096
        sent.append((parts, to_device(parts, gpu)))

    for parts, arrived in sent:
        back = to_cpu(arrived)
        assert torch.equal(back, torch.cat(parts))
        assert back.is_pinned()
        padding = Padding([1000, 24], 1000, gpu)
        assert torch.equal(to_cpu(padding.strip(padding.pad(arrived))), back)
