"""What experts take, and what is said when they do not fit."""

import pytest
import torch

from learning_at_home.errors import ConfigError
from learning_at_home.project import LayerSpec, OptimizerSpec
from node_agent.experts.architectures import weight_bytes
from node_agent.experts.memory import Fit, check_fits, count_fitting, free_device_bytes, measure, total_bytes
from node_agent.experts.sizes import parse_size, shown

LAYER = LayerSpec(prefix="ffn0", grid=(4, 4))


@pytest.mark.parametrize(
    "optimizer,copies",
    [
        (OptimizerSpec(), 3),
        (OptimizerSpec(name="adamw"), 3),
        (OptimizerSpec(name="sgd"), 1),
        (OptimizerSpec(name="sgd", momentum=0.9), 2),
        (OptimizerSpec(name="frozen"), 1),
        (OptimizerSpec(name="sgd", update_rows=512), 2),
    ],
)
def test_weights_and_optimizer_state_last(optimizer, copies):
    layer = LayerSpec(prefix="ffn0", grid=(4, 4), optimizer=optimizer)

    assert measure(layer, 16).lasting_bytes == copies * weight_bytes(layer)


def test_activations_grow_with_the_batch_and_are_counted_once():
    small, large = measure(LAYER, 64), measure(LAYER, 128)

    assert large.passing_bytes > small.passing_bytes > weight_bytes(LAYER)
    assert total_bytes([(small, 10)]) == 10 * small.lasting_bytes + small.passing_bytes


def test_an_estimate_of_activations_is_near_what_autograd_keeps():
    num_rows, inner = 64, 4 * LAYER.hidden_size
    # rows, and for each of the two inner products: its output, the normalised one, and what the ReLU lets through
    kept = num_rows * 4 * (LAYER.hidden_size + 2 * 2 * inner)

    saved = (measure(LAYER, num_rows).passing_bytes - 2 * weight_bytes(LAYER) - 4 * num_rows * LAYER.row_bytes) / 2

    assert kept <= saved <= 2 * kept


def test_experts_that_fit_are_accepted():
    needed = total_bytes([(measure(LAYER, 256), 4)])

    fit = check_fits([(LAYER, 4)], 256, needed, "cpu")

    assert fit == Fit(needed, needed, 4)


def test_experts_that_do_not_fit_are_refused_with_how_many_do():
    memory = measure(LAYER, 256)
    room_for_five = memory.passing_bytes + 5 * memory.lasting_bytes

    with pytest.raises(ConfigError, match=r"16 experts take .*, but cuda:0 has .*; 5 fit\..*--memory-limit"):
        check_fits([(LAYER, 16)], 256, room_for_five, "cuda:0")


def test_what_fits_is_said_in_one_line():
    assert str(Fit(12_000_000, 5_900_000_000, 3_900)) == "12.0 MB of 5.9 GB; 3,900 would fit"


def test_no_expert_fits_where_not_even_one_batch_does():
    assert count_fitting([measure(LAYER, 256)], 1_000) == 0


def test_an_expert_larger_than_the_machine_is_refused_before_it_is_made():
    huge = LayerSpec(prefix="ffn0", grid=(2,), hidden_size=500_000)

    with pytest.raises(ConfigError, match=r"one expert's weights take .* GB, more than this machine has"):
        measure(huge, 1)


def test_a_machine_has_some_memory_left():
    assert free_device_bytes(torch.device("cpu")) > 0


@pytest.mark.parametrize(
    "text,size", [("4GB", 4_000_000_000), ("512 MiB", 512 * 2**20), ("1.5kb", 1500), ("1024", 1024), ("2gib", 2**31)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "4 elephants", "-1GB", "GB", "1e9"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="such as 4GB"):
        parse_size(text)


def test_sizes_are_shown_with_a_unit():
    assert [shown(n) for n in (999, 42_800_000, 3_100_000_000)] == ["999 bytes", "42.8 MB", "3.1 GB"]
