"""Named parameters in chunks: end to end, and back as they were."""

import pytest
import torch

from learning_at_home.client.shared_layout import Layout, fingerprint
from learning_at_home.errors import NonFiniteTensor, SpecMismatch
from learning_at_home.project import LayerSpec


def layer(grid: int = 4, hidden_size: int = 5) -> LayerSpec:
    return LayerSpec(prefix="trunk", grid=(grid,), architecture="parameters", hidden_size=hidden_size)


def named(**shapes: tuple[int, ...]) -> list[tuple[str, torch.Tensor]]:
    return [(name, torch.randn(shape)) for name, shape in shapes.items()]


@pytest.mark.parametrize(
    "shapes,num_chunks",
    [
        ({"a": (5,)}, 1),
        ({"a": (2, 3)}, 2),
        ({"a": (), "b": (1,)}, 1),
        ({"a": (3, 3), "b": (11,)}, 4),
        ({"a": (0,), "b": (6,)}, 2),
    ],
)
def test_what_is_read_is_written_back(shapes, num_chunks):
    parameters = named(**shapes)
    layout = Layout(layer(), parameters)
    before = [parameter.clone() for _, parameter in parameters]

    flat = layout.read()
    for _, parameter in parameters:
        parameter.zero_()
    layout.write(flat)

    assert flat.shape == (num_chunks, 5)
    assert torch.equal(flat.reshape(-1)[: layout.num_numbers], torch.cat([value.reshape(-1) for value in before]))
    assert not flat.reshape(-1)[layout.num_numbers :].any()
    assert all(torch.equal(parameter, value) for (_, parameter), value in zip(parameters, before, strict=True))


def test_a_copy_does_not_follow_the_model():
    parameters = named(a=(5,))
    flat = Layout(layer(), parameters).read()
    before = flat.clone()

    parameters[0][1].zero_()

    assert torch.equal(flat, before)


@pytest.mark.parametrize(
    "parameters,words",
    [
        ([], "no parameters to share"),
        ([("steps", torch.zeros(3, dtype=torch.int64))], "steps is torch.int64"),
        (named(a=(3, 7)), r"21 numbers; the layer holds 4 chunks of 5. Give it grid = \[5\]"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(parameters, words):
    with pytest.raises(SpecMismatch, match=words):
        Layout(layer(), parameters)


def test_the_parameter_that_holds_nan_is_named():
    parameters = named(sound=(3,), spoilt=(4,))
    parameters[1][1][2] = float("inf")
    layout = Layout(layer(), parameters)

    with pytest.raises(NonFiniteTensor, match="layer trunk: spoilt holds NaN or infinity"):
        layout.check_finite(layout.read())


def test_the_fingerprint_is_the_one_of_the_wire_format():
    assert fingerprint([("0.weight", (10, 9)), ("0.bias", (10,))]) == 1_912_798_470_561


@pytest.mark.parametrize(
    "other",
    [
        [("a", (2, 3)), ("b", (4,))],
        [("b", (4,)), ("a", (3, 2))],
        [("a", (3, 2)), ("c", (4,))],
        [("a", (3, 2))],
        [("a", (3, 2)), ("b", (2, 2))],
    ],
)
def test_names_shapes_and_their_order_make_the_fingerprint(other):
    shapes = [("a", (3, 2)), ("b", (4,))]

    assert fingerprint(shapes) == fingerprint(list(shapes))
    assert 0 < fingerprint(shapes) < 1 << 42
    assert fingerprint(other) != fingerprint(shapes)


def test_each_chunk_knows_what_its_parameters_can_hold():
    parameters = [
        ("a", torch.zeros(3, dtype=torch.float64)),
        ("b", torch.zeros(2, dtype=torch.float16)),
        ("c", torch.zeros(3, dtype=torch.float32)),
    ]
    limits = [Layout(layer(hidden_size=3), parameters).largest(cell) for cell in range(3)]

    assert limits == [torch.finfo(dtype).max for dtype in (torch.float64, torch.float16, torch.float32)]
