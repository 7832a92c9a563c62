"""The project record: what it accepts, what it refuses, and its canonical bytes."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning_at_home.errors import ConfigError, UnknownLayer, WireError
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord

RECORD = ProjectRecord(id="digits", layers=(LayerSpec(prefix="ffn0", grid=(4, 4)), LayerSpec(prefix="ffn1", grid=(8,))))


def test_a_record_survives_its_bytes() -> None:
    assert ProjectRecord.from_bytes(RECORD.to_bytes()) == RECORD


@given(st.binary(max_size=300))
def test_garbage_is_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        ProjectRecord.from_bytes(data)


def test_text_that_is_not_utf8_is_a_wire_error() -> None:
    with pytest.raises(WireError):
        ProjectRecord.from_bytes(RECORD.to_bytes().replace(b"digits", b"\xffigits"))


def test_a_record_cut_anywhere_is_a_wire_error() -> None:
    data = RECORD.to_bytes()
    for length in range(len(data)):
        with pytest.raises(WireError):
            ProjectRecord.from_bytes(data[:length])


def test_an_unknown_layer_is_answered_with_those_there_are() -> None:
    with pytest.raises(UnknownLayer, match="ffn0, ffn1"):
        RECORD.layer("ffn9")


@pytest.mark.parametrize(
    "layer, word",
    [
        ({"prefix": "FFN"}, "prefix"),
        ({"grid": []}, "grid"),
        ({"grid": [0, 4]}, "grid"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 1_000_000, "sequence_length": 1_000_000}, "bytes"),
        ({"architecture": "../evil"}, "architecture"),
        ({"dtype": "int8"}, "dtype"),
        ({"k_min": 0}, "k_min"),
        ({"deadline_s": float("nan")}, "deadline_s"),
        ({"optimizer": {"learning_rate": -1.0}}, "learning_rate"),
        ({"optimizer": {"learning_rate": float("inf")}}, "learning_rate"),
        ({"optimizer": {"name": "Lion!"}}, "name"),
        ({"optimizer": {"schedule": "cosine"}}, "decay_updates"),
        ({"optimizer": {"decay_updates": 5}}, "schedule"),
        ({"optimizer": {"schedule": "exponential"}}, "schedule"),
        ({"optimizer": {"final_learning_rate": 0.5}}, "final_learning_rate"),
        ({"optimizer": {"nesterov": True}}, "momentum"),
        ({"optimizer": {"update_rows": 0}}, "update_rows"),
        ({"optimizer": {"update_seconds": 0.0}}, "update_seconds"),
        ({"optimizer": {"options": {"rank": float("nan")}}}, "options"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_layer_that_cannot_be_used_is_refused_by_name(layer: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        ProjectRecord.from_builtins({"id": "digits", "layers": [{"prefix": "ffn0", "grid": [4, 4], **layer}]})


def test_all_that_an_optimizer_may_be_told_survives_toml_json_and_bytes(tmp_path) -> None:
    optimizer = OptimizerSpec(
        name="lion",
        options={"friction": 0.5},
        warmup_updates=10,
        schedule="cosine",
        decay_updates=100,
        update_rows=512,
        update_seconds=2.0,
    )
    record = ProjectRecord(id="digits", layers=(LayerSpec(prefix="ffn0", grid=(2,), optimizer=optimizer),)).check()
    file = tmp_path / "project.toml"
    file.write_text(
        """id = "digits"
        [[layers]]
        prefix = "ffn0"
        grid = [2]
        [layers.optimizer]
        name = "lion"
        options = { friction = 0.5 }
        warmup_updates = 10
        schedule = "cosine"
        decay_updates = 100
        update_rows = 512
        update_seconds = 2.0
        """,
        "utf-8",
    )

    assert ProjectRecord.from_toml(file) == record
    assert ProjectRecord.from_bytes(record.to_bytes()) == record
    assert ProjectRecord.from_builtins(json.loads(msgspec.json.encode(record))) == record
    assert len({record.layers[0], ProjectRecord.from_bytes(record.to_bytes()).layers[0]}) == 1


def test_a_record_of_an_earlier_version_has_the_defaults_of_what_it_does_not_say() -> None:
    earlier = {"name": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "betas": [0.9, 0.999], "momentum": 0.0}

    record = ProjectRecord.from_builtins(
        {"id": "digits", "layers": [{"prefix": "ffn0", "grid": [4], "optimizer": {**earlier, "clip_norm": 1.0}}]}
    )

    assert record.layers[0].optimizer == OptimizerSpec(name="sgd", learning_rate=0.1)


@pytest.mark.parametrize("id_", ["", "d", "Digits", "a/b", "x" * 41, "a b", "<b>"])
def test_an_impossible_id_is_refused(id_: str) -> None:
    with pytest.raises(ConfigError):
        ProjectRecord(id=id_).check()


def test_a_title_that_steers_terminals_is_refused() -> None:
    with pytest.raises(ConfigError, match="control characters"):
        ProjectRecord(id="digits", title="\x1b]0;gone\x07").check()
    ProjectRecord(id="digits", description="two\nlines").check()


def test_an_optimizers_name_that_steers_terminals_is_told_without_doing_so() -> None:
    with pytest.raises(ConfigError) as refused:
        OptimizerSpec(name="adam\x1b[2J").check("layer 'ffn0'")
    assert refused.value.message.isprintable()


def test_more_cells_in_all_than_peers_can_hold_are_refused() -> None:
    layers = tuple(LayerSpec(prefix=f"ffn{number}", grid=(2_048, 2_048)) for number in range(2))
    with pytest.raises(ConfigError, match="8,388,608"):
        ProjectRecord(id="digits", layers=layers).check()


def test_two_layers_of_one_prefix_are_refused() -> None:
    with pytest.raises(ConfigError, match="share a prefix"):
        ProjectRecord(id="digits", layers=(RECORD.layers[0], RECORD.layers[0])).check()


def test_a_toml_file_becomes_a_record_and_its_faults_name_it(tmp_path: Path) -> None:
    path = tmp_path / "digits.toml"
    path.write_text('id = "digits"\n[[layers]]\nprefix = "ffn0"\ngrid = [4, 4]\n[layers.optimizer]\nname = "sgd"\n')
    assert ProjectRecord.from_toml(path).layers[0].optimizer == OptimizerSpec(name="sgd")
    path.write_text("id = ")
    with pytest.raises(ConfigError, match=r"digits\.toml"):
        ProjectRecord.from_toml(path)


def test_rows_per_request_are_bound_by_bytes_too() -> None:
    assert LayerSpec(prefix="a", grid=(1,), hidden_size=64).max_rows == 4_096
    wide = LayerSpec(prefix="a", grid=(1,), hidden_size=8_192, sequence_length=128)
    assert wide.row_shape == (128, 8_192)
    assert wide.max_rows == 64 * 1024 * 1024 // (2 * 128 * 8_192 * 4)


def test_every_field_of_a_layer_and_its_optimizer_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "project-record.md").read_text("utf-8")

    fields = (*LayerSpec.__struct_fields__, *OptimizerSpec.__struct_fields__)

    assert [field for field in fields if f"`{field}`" not in page] == []
