"""Where reports go beside the dashboard, and that no sink ends a training."""

import csv
import logging
import math
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import learning_at_home as lah
from learning_at_home.client import sinks
from learning_at_home.errors import ConfigError, UsageError
from tests.learning_at_home.client.small_swarm import layer


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_csv_file_has_a_line_per_metric_and_is_continued(small_swarm, tmp_path):
    path = tmp_path / "run.csv"
    for first_step in (0, 2):
        swarm = small_swarm(layer()).swarm
        swarm.add_sink(lah.CsvSink(path))
        for step in (first_step, first_step + 1):
            swarm.report(step, loss=torch.tensor(1 / (1 + step)), **({"accuracy": 0.5} if step == 3 else {}))
        assert len(lines_of(path)) >= first_step + 2, "a step is in the file before the next one"
        swarm.close()

    lines = lines_of(path)
    assert [(line["step"], line["metric"]) for line in lines] == [
        ("0", "loss"),
        ("1", "loss"),
        ("2", "loss"),
        ("3", "loss"),
        ("3", "accuracy"),
    ]
    assert [float(line["value"]) for line in lines] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 0.5])


def test_a_function_is_a_sink_and_sees_what_is_not_finite(small_swarm):
    told: list[tuple[int, Mapping[str, float]]] = []
    swarm = small_swarm(layer()).swarm
    swarm.add_sink(lambda step, metrics: told.append((step, metrics)))

    swarm.report(7, loss=math.inf)
    with pytest.raises(UsageError):
        swarm.report(8, loss="high")
    swarm.close()
    swarm.report(9, loss=1.0)

    assert told == [(7, {"loss": math.inf})]


def test_a_sink_that_fails_is_complained_about_once_and_the_others_go_on(small_swarm, caplog):
    told = []
    swarm = small_swarm(layer()).swarm

    class Full:
        def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
            raise OSError("no space left on device")

        def close(self) -> None:
            raise OSError("still no space")

    swarm.add_sink(Full())
    swarm.add_sink(lambda step, metrics: told.append(step))
    with caplog.at_level(logging.ERROR):
        for step in range(3):
            swarm.report(step, loss=1.0)
        swarm.close()

    assert told == [0, 1, 2]
    assert [record.message for record in caplog.records] == [
        "the sink Full failed at step 0; training goes on",
        "the sink Full could not be closed",
    ]


def test_a_sink_may_close_the_swarm_that_it_is_told_by(small_swarm, tmp_path, caplog):
    swarm = small_swarm(layer()).swarm
    swarm.add_sink(lambda step, metrics: None if math.isfinite(metrics["loss"]) else swarm.close())
    swarm.add_sink(lah.CsvSink(tmp_path / "run.csv"))

    def report() -> None:
        swarm.report(0, loss=1.0)
        swarm.report(1, loss=math.nan)

    reporting = threading.Thread(target=report, daemon=True)
    reporting.start()
    reporting.join(10)

    assert not reporting.is_alive()
    assert "closed" in repr(swarm)
    assert caplog.records == []
    assert [line["step"] for line in lines_of(tmp_path / "run.csv")] == ["0"]


def test_a_sink_that_cannot_begin_says_why(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="cannot be written"):
        lah.CsvSink(tmp_path)
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"learning-at-home\[tensorboard\]"):
        lah.TensorBoardSink(tmp_path)


@pytest.mark.slow
def test_tensorboard_reads_what_was_reported(small_swarm, tmp_path):
    swarm = small_swarm(layer()).swarm
    swarm.add_sink(lah.TensorBoardSink(tmp_path / "first"))
    for step in range(3):
        swarm.report(step, loss=1.0 / (1 + step), accuracy=0.5)
    swarm.close()

    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    read = EventAccumulator(str(tmp_path / "first"))
    read.Reload()
    assert sorted(read.Tags()["scalars"]) == ["accuracy", "loss"]
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [
        (0, 1.0),
        (1, 0.5),
        (2, pytest.approx(1 / 3)),
    ]
