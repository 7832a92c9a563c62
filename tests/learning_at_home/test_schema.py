"""Schemas: their text, and structures flattened and put together again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning_at_home.errors import ConfigError, SpecMismatch, WireError
from learning_at_home.project import LayerSpec, ProjectRecord
from learning_at_home.schema import MAX_CHARS, MAX_TENSORS, Leaf, parse_schema

CELL = "(float[5, 4], mask=bool[5], state=(float[4], {cell: float[4]})) -> (float[5, 4], (float[4], float[4]))"


def test_leaves_are_named_by_their_path_and_travel_in_the_order_of_the_text() -> None:
    schema = parse_schema(CELL, "float64")
    assert schema.inputs == (
        Leaf("0", "float64", (5, 4)),
        Leaf("mask", "bool", (5,)),
        Leaf("state.0", "float64", (4,)),
        Leaf("state.1.cell", "float64", (4,)),
    )
    assert [leaf.path for leaf in schema.outputs] == ["0", "1.0", "1.1"]
    layer = LayerSpec(prefix="lstm0", grid=(2,), schema=CELL, dtype="float64")
    assert [leaf.path for leaf in layer.float_inputs] == ["0", "state.0", "state.1.cell"]
    assert schema.row_bytes == 8 * (20 + 4 + 4) + 5
    assert str(schema.inputs[1]) == "bool[*, 5]"


def test_a_single_output_and_a_number_per_row_have_a_name_too() -> None:
    schema = parse_schema(" ( int64 [ ] ,) ->float[]", "float32")
    assert schema.inputs == (Leaf("0", "int64", ()),)
    assert schema.outputs == (Leaf("0", "float32", ()),)
    assert str(schema) == "( int64 [ ] ,) ->float[]"


@pytest.mark.parametrize(
    "text, said",
    [
        ("", r"'\(' is expected, at its end"),
        ("float[3] -> float[3]", r"'\(' is expected"),
        ("(float[3])", "'->' is expected, at its end"),
        ("(float[3]) -> int64[3]", "output 0 is int64; outputs are float"),
        ("(float[3]) -> (float[3], (bool[3],))", "output 1.0 is bool"),
        ("(x=float[3], float[2]) -> float[3]", r"positional input behind a named one, at 'float\[2\]"),
        ("(float[0]) -> float[1]", "a size is a number from 1"),
        ("(float[9999999999]) -> float[1]", "a size is a number from 1"),
        ("() -> float[3]", "at least one tensor"),
        ("(float[3]) -> ()", "at least one tensor"),
        ("(float[3]) -> float[3] x", "more than an output"),
        ("(float16[3]) -> float[3]", "a tensor is float"),
        ("(float[3], a=float[1], a=float[2]) -> float[3]", "a comes twice"),
        ("(float[3]; ) -> float[1]", "means nothing, at '; "),
        ("(float[3) -> float[1]", "',' is expected"),
        ("({a: float[1], a: float[1]}) -> float[1]", "a name of its own"),
        ("({1: float[1]}) -> float[1]", "a name of its own"),
        ("(" * 30 + "float[3]" + ")" * 30 + " -> float[1]", "nested deeper than 8"),
        (f"(float[{'1, ' * 8}]) -> float[1]", "8 sizes"),
        (f"({'float[1], ' * MAX_TENSORS}) -> float[1]", "16 tensors in, 1 out; 16 together"),
        (" " * (MAX_CHARS + 1), "2,000 are allowed"),
    ],
)
def test_what_is_no_schema_is_refused_with_the_place(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_schema(text, "float32")
    with pytest.raises(ConfigError, match=f"layer 'gru0': schema: .*{said}"):
        LayerSpec(prefix="gru0", grid=(2,), schema=text).check()


@given(st.text(alphabet="(){}[],:=-> \nfloatbint6480123456789_xé²", max_size=60))
def test_any_text_is_a_schema_or_a_config_error(text: str) -> None:
    try:
        schema = parse_schema(text, "float32")
    except ConfigError:
        return
    assert len(schema.inputs) + len(schema.outputs) <= MAX_TENSORS


def structures(leaf: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Texts of leaves in tuples and dicts."""
    names = st.from_regex(r"[a-z_][a-z0-9_]{0,3}", fullmatch=True)
    return st.recursive(
        leaf,
        lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(names, inner, max_size=3),
        max_leaves=4,
    )


LEAVES = st.builds(
    lambda dtype, shape: f"{dtype}{list(shape)}",
    st.sampled_from(["float", "bool", "int64", "uint8"]),
    st.lists(st.integers(1, 9), max_size=3),
)


def text_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {text_of(part)}" for name, part in value.items()) + "}"
    return "(" + "".join(f"{text_of(part)}," for part in value) + ")"


def count(value: Any) -> int:
    if isinstance(value, str):
        return 1
    return sum(map(count, value.values() if isinstance(value, dict) else value))


def filled(value: Any, number: Any) -> Any:
    """The structure, with `next(number)` at each leaf; lists in place of tuples."""
    if isinstance(value, str):
        return next(number)
    if isinstance(value, dict):
        made = {name: filled(part, number) for name, part in value.items()}
        return dict(reversed(made.items()))  # whoever calls writes them in any order
    return [filled(part, number) for part in value]


def listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: listed(part) for name, part in value.items()}
    return [listed(part) for part in value] if isinstance(value, tuple) else value


@given(
    st.lists(structures(LEAVES), max_size=2),
    st.dictionaries(st.from_regex(r"[a-z]{1,3}", fullmatch=True), structures(LEAVES), max_size=2),
    structures(st.just("float[2]")),
)
def test_what_is_flattened_comes_back_and_so_does_the_text(
    args: list[Any], kwargs: dict[str, Any], output: Any
) -> None:
    inputs = ", ".join([*map(text_of, args), *(f"{name}={text_of(value)}" for name, value in kwargs.items())])
    num_in, num_out = sum(map(count, (*args, *kwargs.values()))), count(output)
    text = f"({inputs}) -> {text_of(output)}"
    if not num_in or not num_out or num_in + num_out > MAX_TENSORS:
        with pytest.raises(ConfigError):
            parse_schema(text, "float32")
        return
    schema = parse_schema(text, "float32")
    assert parse_schema(str(schema), "float32").inputs == schema.inputs
    assert len({leaf.path for leaf in schema.inputs}) == num_in
    numbers = iter(range(num_in))
    given_args, given_kwargs = [filled(part, numbers) for part in args], {}
    for name, part in kwargs.items():
        given_kwargs[name] = filled(part, numbers)
    flat = schema.flatten_inputs("me", given_args, dict(reversed(given_kwargs.items())))
    assert sorted(flat) == list(range(num_in))
    back_args, back_kwargs = schema.unflatten_inputs(flat)
    assert ([*map(listed, back_args)], listed(back_kwargs)) == (given_args, given_kwargs)
    answer = filled(output, iter(range(num_out)))
    assert listed(schema.unflatten_output(schema.flatten_output("me", answer))) == answer


@pytest.mark.parametrize(
    "args, kwargs, said",
    [
        ((), {"mask": 1, "state": (2, {"cell": 3})}, "gru0 takes .*: 1 positional inputs; 0 came"),
        ((0, 1), {"mask": 1, "state": (2, {"cell": 3})}, "1 positional inputs; 2 came"),
        ((0,), {"state": (2, {"cell": 3})}, "input mask is missing"),
        ((0,), {"mask": 1, "state": (2, {"cell": 3}), "masq": 1}, "there is no input masq"),
        ((0,), {"mask": 1, "state": 2}, "input state is a int instead of 2 values"),
        ((0,), {"mask": 1, "state": (2,)}, "input state has 1 instead of 2 values"),
        ((0,), {"mask": 1, "state": (2, 3)}, "input state.1 is a int instead of cell"),
        ((0,), {"mask": 1, "state": (2, {"cel": 3})}, "input state.1 has cel instead of cell"),
    ],
)
def test_a_call_of_another_structure_is_refused_by_the_path(args: Any, kwargs: Any, said: str) -> None:
    with pytest.raises(SpecMismatch, match=said):
        parse_schema(CELL, "float64").flatten_inputs("gru0", args, kwargs)


def test_an_output_of_another_structure_is_refused() -> None:
    with pytest.raises(SpecMismatch, match=r"gru0 must return .*: the output\.1 is a int instead of 2 values"):
        parse_schema(CELL, "float64").flatten_output("gru0", (0, 1))


def test_a_layer_says_what_goes_in_and_out_and_how_many_rows_fit() -> None:
    plain = LayerSpec(prefix="ffn0", grid=(2,), hidden_size=6, dtype="float64")
    assert (plain.inputs, plain.outputs) == ((Leaf("0", "float64", (6,)),),) * 2
    assert plain.nested is None
    several = LayerSpec(prefix="gru0", grid=(2,), schema=CELL, dtype="float64")
    several.check()
    assert several.nested is not None
    assert (several.inputs, several.outputs) == (several.nested.inputs, several.nested.outputs)
    assert several.row_bytes == several.nested.row_bytes
    wide = LayerSpec(prefix="gru0", grid=(2,), schema="(float[1000, 1000]) -> float[1]")
    assert wide.max_rows == 8  # 4 MB each, and a gradient that is as large at the most
    with pytest.raises(ConfigError, match="one row takes"):
        LayerSpec(prefix="gru0", grid=(2,), schema="(float[10000, 1000]) -> float[1]").check()
    with pytest.raises(ConfigError, match="no sequence_length or schema"):
        LayerSpec(prefix="trunk", grid=(2,), architecture="parameters", schema=CELL).check()


def test_a_record_carries_the_schema_and_a_broken_one_is_no_record() -> None:
    record = ProjectRecord(id="digits", layers=(LayerSpec(prefix="gru0", grid=(2,), schema=CELL),)).check()
    assert ProjectRecord.from_bytes(record.to_bytes()) == record
    written = {"id": "digits", "layers": [{"prefix": "gru0", "grid": [2], "schema": CELL}]}
    assert ProjectRecord.from_builtins(written) == record
    broken = ProjectRecord(id="digits", layers=(LayerSpec(prefix="gru0", grid=(2,), schema="float[3]"),))
    with pytest.raises(WireError, match="schema"):
        ProjectRecord.from_bytes(broken.to_bytes())
