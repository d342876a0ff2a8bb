"""``coordvlm.load``: the same answers as the command, from Python; importing the package stays cheap."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import coordvlm
from coordvlm.utils.errors import ConfigError, DataError
from tests.e2e.commands import Ran, predict
from tests.e2e.speech import BOX_60_120, OBJECT_ANSWER, PHRASE_ANSWER, speak


@pytest.fixture
def runs(fast_run: Ran, ground_run: Ran) -> dict[str, Ran]:
    return {"detect": fast_run, "ground": ground_run}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Stored lying on its side; displayed 60 x 120."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (120, 60), (200, 30, 40)).save(tmp_path / "b.png", exif=exif)
    return tmp_path / "b.png"


def test_detect_and_ground_say_what_the_command_says(fast_outputs: Path, runs: dict[str, Ran], photo: Path) -> None:
    for task, run in runs.items():
        asked = ["phrase=a red cup"] if task == "ground" else []
        ran = predict(fast_outputs, f"run={run.run}", f"images={photo}", "overlays=false", *asked)
        line = json.loads((ran.run / "predictions.jsonl").read_text())
        model = coordvlm.load(run.run)
        got = model.detect(str(photo)) if task == "detect" else model.ground(photo, "a red cup")
        here = got.to_json()
        assert {k: v for k, v in here.items() if k != "seconds"} == {k: line[k] for k in here if k != "seconds"}
        assert got.size == (60, 120)


def test_several_phrases_and_images_in_memory(runs: dict[str, Ran], photo: Path) -> None:
    model = coordvlm.load(runs["ground"].run, decode={"retries": 1, "max_new_tokens": 4})
    with Image.open(photo) as image:
        found = model.ground(image, ["a cup", " a plate "])
    assert [a.phrase for a in found] == ["a cup", "a plate"]
    assert all(a.size == (60, 120) for a in found)
    assert model.ground(photo, []) == []


def test_boxes_are_source_pixels(runs: dict[str, Ran], photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speak(monkeypatch, *OBJECT_ANSWER)
    (found,) = coordvlm.load(runs["detect"].run).detect(photo).boxes
    assert found.box == pytest.approx(BOX_60_120, abs=1e-4)
    assert found.desc
    assert 0 < found.score <= 1
    monkeypatch.undo()
    speak(monkeypatch, *PHRASE_ANSWER)
    assert coordvlm.load(runs["ground"].run).ground(photo, "a cup").box == pytest.approx(BOX_60_120, abs=1e-4)
    weak = coordvlm.load(runs["ground"].run, min_score=1.1).ground(photo, "a cup")
    assert (weak.box, weak.kind, weak.rejected) == (None, "nothing", {"low_score": 1})


def test_what_cannot_be_asked_is_refused(runs: dict[str, Ran], photo: Path, tmp_path: Path) -> None:
    detector, grounder = coordvlm.load(runs["detect"].run), coordvlm.load(runs["ground"].run)
    with pytest.raises(ConfigError, match="is for task=detect"):
        detector.ground(photo, "a cup")
    with pytest.raises(ConfigError, match="is for task=ground"):
        grounder.detect(photo)
    with pytest.raises(ConfigError, match="at least one word"):
        grounder.ground(photo, ["a cup", " "])
    with pytest.raises(DataError, match=r"nowhere\.png: the image file must exist"):
        detector.detect(tmp_path / "nowhere.png")
    with pytest.raises(ConfigError, match="no such folder"):
        coordvlm.load(tmp_path / "nowhere")


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import coordvlm, sys; print([m for m in ('torch', 'numpy', 'hydra', 'PIL') if m in sys.modules], coordvlm.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] ")
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        coordvlm.lode  # type: ignore[attr-defined]  # noqa: B018
