"""The figures of the codecs: every one in the table and in the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import compression
from learning_at_home.wire.messages import CODECS


def test_each_codec_has_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "SAMPLE_S", 1e-4)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)  # it would stay so for the other tests
    file = tmp_path / "figures.json"
    arguments = ["--quick", "--runs", "1", "--rows", "2", "3", "--features", "128", "--json", str(file)]
    assert compression.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads(file.read_text())["rows"]
    assert [row["row"] for row in rows] == [f"{codec}-float32[{n}, 128]" for n in (2, 3) for codec in CODECS]
    assert len(lines) == len(rows) + 2
    assert [row["size_bytes"] for row in rows[:4]] == [1_024, 512, 512, 264]
    assert all(row["encode_s"] > 0 and row["decode_s"] > 0 for row in rows)
    assert [row["largest_error"] == 0 for row in rows[:4]] == [True, False, False, False]
    assert all(row["largest_error"] < 1 / 200 for row in rows)
