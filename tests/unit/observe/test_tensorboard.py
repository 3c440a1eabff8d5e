"""TensorBoard's files: what is logged is read back, and a resumed run replaces the steps it makes again."""

from __future__ import annotations

import pytest

from grpo_hpc.observe.reporters import Report, open_reporters
from grpo_hpc.observe.sinks import MetricSinks


def test_values_are_read_back_and_a_resume_replaces_later_ones(tmp_path):
    pytest.importorskip("torch")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start, value in ((0, 1.0), (2, 5.0)):
        sinks = MetricSinks(tmp_path / "metrics.jsonl", open_reporters(["tensorboard"], Report(tmp_path)))
        sinks.rewind(start)
        for step in range(start + 1, 4):
            sinks.log(step, {"loss": value})
        sinks.close()
    reader = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert [(event.step, event.value) for event in reader.Scalars("loss")] == [(1, 1.0), (2, 1.0), (3, 5.0)]


def test_completions_and_pictures(tmp_path):
    pytest.importorskip("torch")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    report = Report(tmp_path, {"name": "demo", "plan": {"estimate": {"verdict": "fits"}}})
    sinks = MetricSinks(tmp_path / "metrics.jsonl", open_reporters(["tensorboard"], report))
    sinks.completions(1, [{"messages": [], "completion": "<b>\n```", "reward": 0.5}])
    sinks.log(1, {"time/step": 2.0, "time/train": 1.0})
    sinks.close()
    reader = accumulator.EventAccumulator(
        str(tmp_path / "tensorboard"), {accumulator.TENSORS: 0, accumulator.IMAGES: 0}
    )
    reader.Reload()

    def text(name):
        return reader.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()

    assert "reward 0.5" in text("completions") and "    <b>\n    ```" in text("completions"), "code, which nothing ends"
    assert '"verdict": "fits"' in text("config")
    assert reader.Images("phases")[0].width == 4
