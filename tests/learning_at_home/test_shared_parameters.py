"""The note that stands where an expert's inputs do: exact whatever it travels as, and nothing else is one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learning_at_home.errors import ConfigError, SpecMismatch
from learning_at_home.project import LayerSpec, OptimizerSpec
from learning_at_home.shared_parameters import FINGERPRINT_BITS, MAX_ORIGIN, MAX_VERSION, NOTE_SIZE, Meaning, Note
from learning_at_home.tensors.frames import from_frames, to_frames
from learning_at_home.wire.messages import CODECS

NOTE = Note(Meaning.FILL, 300, 12, 2**40 + 7)
NOTES = st.builds(
    Note,
    st.sampled_from(Meaning),
    st.integers(0, MAX_VERSION),
    st.integers(0, MAX_ORIGIN),
    st.integers(0, (1 << FINGERPRINT_BITS) - 1),
)


def test_a_note_is_laid_out_as_the_wire_format_says():
    assert NOTE.to_row() == [127, 3, 0, 0, 2, 44, 0, 0, 0, 12, 32, 0, 0, 0, 0, 7]


@given(NOTES, st.sampled_from(CODECS), st.sampled_from([torch.float32, torch.float64]))
def test_a_note_comes_back_exactly_under_every_codec(note, codec, dtype):
    spec, frames = to_frames(torch.tensor([note.to_row()], dtype=dtype), codec)

    assert Note.from_row(from_frames(spec, frames, codec)[0].tolist()) == note


def test_a_version_beyond_the_digits_is_the_largest():
    assert Note.from_row(Note(Meaning.READ, MAX_VERSION + 5, 1, 1).to_row()) == Note(Meaning.READ, MAX_VERSION, 1, 1)


def test_a_row_of_zeros_is_a_probe():
    assert Note.from_row([0.0] * NOTE_SIZE) is None


@pytest.mark.parametrize("position,value", [(0, 126), (1, 0), (1, 5), (3, 0.5), (4, -1), (5, 128), (6, float("nan"))])
def test_another_row_is_refused(position, value):
    row = [float(number) for number in NOTE.to_row()]
    row[position] = value

    with pytest.raises(SpecMismatch, match="no note"):
        Note.from_row(row)


def test_a_row_of_another_length_is_refused():
    with pytest.raises(SpecMismatch):
        Note.from_row(NOTE.to_row()[:-1])


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"grid": (2, 2)}, "a grid of one dimension"),
        ({"sequence_length": 3}, "no sequence_length"),
        ({"optimizer": OptimizerSpec(clip_norm=0.5)}, "clip_norm does not apply"),
    ],
)
def test_a_layer_that_cannot_hold_shared_parameters_is_refused(changes, words):
    fields = {"prefix": "trunk", "grid": (2,), "architecture": "parameters", **changes}

    with pytest.raises(ConfigError, match=words):
        LayerSpec(**fields).check()
