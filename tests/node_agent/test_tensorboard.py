"""The node's health as TensorBoard reads it."""

import pytest

from learning_at_home.coordinator_messages import DeviceTelemetry, ExpertTelemetry, NodeTelemetry
from node_agent.tensorboard import HealthWriter


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own imports
def test_health_is_written_as_scalars_over_time(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    expert = ExpertTelemetry("ffn0", 1, 30, 20, 4, 11, 1, 2.0, 3.0, 0.5, 1e6)
    telemetry = NodeTelemetry(100.0, "online", (expert,), 7, 2, 2.0, 3.0, DeviceTelemetry(load_percent=40.0))
    writer = HealthWriter(tmp_path, "brisk-heron")

    writer.write(telemetry, now_s=160.0)
    writer.close()

    read = EventAccumulator(str(tmp_path / "brisk-heron"))
    read.Reload()
    written = {tag: read.Scalars(tag)[0].value for tag in read.Tags()["scalars"]}
    assert written["rows/forward"] == 30
    assert written["calls/answered"] == 10
    assert written["experts/updates"] == 4
    assert written["device/load_percent"] == 40
    assert "device/power_w" not in written  # what cannot be read is not drawn
    assert read.Scalars("rows/queued")[0].step == 60
