from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordvlm import bench
from coordvlm.utils.cli import run_command

SMALL = ("input.num_images=3", "input.size=[96,64]", "input.num_objects=2", "input.batch_size=2", "input.passes=2")


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setenv("COORDVLM_OUTPUTS", str(tmp_path))
    return run_command("bench", bench.main, check=bench.check, about=bench.__doc__, argv=list(argv))


def test_input_is_measured_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, monkeypatch, "case=input", *SMALL) == 0
    out = capsys.readouterr().out
    folder = next((tmp_path / "bench").iterdir())
    assert f"written: {folder / 'bench.json'}" in out
    assert "load average" in out
    found = json.loads((folder / "bench.json").read_text())
    assert set(found["results"]) == {"qwen3vl", "qwen2vl"}
    for speed in found["results"].values():
        assert 0 < speed["per_s"]["low"] <= speed["per_s"]["median"] <= speed["per_s"]["high"]
        assert f"{speed['per_s']['median']:.0f}" in out
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["command"]) == ("finished", "bench")
    assert record["hardware"]


def test_deep_queries_are_measured_beside_shallow_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says of the shipped model is another matter: here only that both train and are set in relation."""
    small = ("data.batch_size=2", "foveated.steps=2", "foveated.warmup=0")
    assert run(tmp_path, monkeypatch, "case=foveated", "data=grid_symbols", *small) == 0
    found = json.loads((next((tmp_path / "bench").iterdir()) / "bench.json").read_text())
    assert set(found["results"]) == {"deep", "shallow"}
    for step in found["results"].values():
        assert 0 < step["cpu_ms"]["low"] <= step["cpu_ms"]["median"] <= step["cpu_ms"]["high"]
    assert found["deep_over_shallow"]["median"] > 0


@pytest.mark.parametrize(("argv", "message"), [
    (("case=inputs",), "case must be one of input, foveated, got 'inputs'; nearest: input"),
    (("input.passes=0",), "input.passes must be an integer of at least 1, got 0"),
    (("input.size=[640]",), "input.size must be a width and a height"),
    (("input.pases=3",), "input.passes"),
    (("case=foveated",), "case=foveated does not measure task=detect: add data=grid_symbols"),
    (("data=grid_symbols",), "case=input does not measure task=video: add data=shapes"),
    (("case=foveated", "data=grid_symbols", "foveated.steps=0"), "foveated.steps must be an integer of at least 1, got 0"),
])
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], message: str
) -> None:
    assert run(tmp_path, monkeypatch, *argv) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "bench").exists()


def test_images_that_the_model_refuses_are_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, monkeypatch, *SMALL, "model.max_length=20") == 1
    assert "must fit into 20 tokens (model.max_length)" in capsys.readouterr().err
