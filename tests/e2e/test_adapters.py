"""Runs with an adapter: through every stage, evaluated from their folder, resumed to the same bits, refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.e2e.commands import Ran, call, evaluate, finished, losses, refusal

#: As in test_resume: across an epoch, stopped in the middle of the next.
COURSE = ("data.source.num_train=40", "trainer.accumulate_grad_batches=2", "trainer.max_steps=6", "trainer.val_check_interval=2",
          "optim.schedule=constant", "adapter=dora", "adapter.dropout=0.2", "adapter.targets=language_and_vision")  # fmt: skip


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def half(outputs: Path) -> Ran:
    return finished(outputs, *COURSE, "trainer.max_steps=3", page=True)


def test_a_run_says_what_trains(half: Ran) -> None:
    lines = {line["group"]: line for line in half.record["trains"]}
    assert {g: line["trained"] > 0 for g, line in lines.items()} == {
        "language": False, "vision": False, "merger": False, "adapter": True, "rows": True
    }  # fmt: skip
    assert half.record["parameters"]["trained"] == sum(line["trained"] for line in lines.values())
    assert lines["adapter"]["lr"] == [2e-4]
    assert half.record["choices"]["adapter"] == "dora"
    assert "learning rate" in half.out
    assert "What trains" in (half.run / "report.html").read_text()
    assert {p.name for p in (half.run / "checkpoints" / "last" / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "base.json"
    }  # fmt: skip


def test_it_is_evaluated_from_its_folder_alone(outputs: Path, half: Ran) -> None:
    again = evaluate(outputs, f"run={half.run}")
    assert again.status == 0, again.err
    mine, theirs = ((r.run / "predictions.jsonl").read_text().splitlines() for r in (again, half))
    assert len(mine) == len(theirs) > 0
    names = ("AP", "coord_mass", "desc_score")
    found = [r.json("metrics.json")["metrics"] for r in (again, half)]
    assert [found[0][n] for n in names if n in found[0]] == [found[1][n] for n in names if n in found[1]]
    assert "adapter=lora is for run=null" in refusal(evaluate(outputs, f"run={half.run}", "adapter=lora"))


@pytest.mark.slow
def test_a_resumed_run_is_the_run_in_one_go_to_the_bit(outputs: Path, half: Ran, tmp_path: Path) -> None:
    one_go = finished(tmp_path, *COURSE)
    resumed = call(outputs, "train", f"resume={half.run}", "trainer.max_steps=6", page=False)
    assert resumed.status == 0, resumed.err
    for file in ("trained.safetensors", "adapter/adapter_model.safetensors"):
        mine, theirs = (load_file(r.run / "checkpoints" / "last" / file) for r in (resumed, one_go))
        assert mine.keys() == theirs.keys()
        assert all(mine[name].equal(value) for name, value in theirs.items())
    assert losses(resumed.run) == losses(one_go.run)


@pytest.mark.parametrize(
    ("override", "message"),
    [("adapter.alpha=8", "alpha 32.0 then, 8 now"), ("adapter=none", "no such key adapter.dropout (with adapter=none)"),
     ("model.load.seed=7", "trained on another base: tiny, random weights then")],
)
def test_a_resume_of_something_else_is_refused(outputs: Path, half: Ran, override: str, message: str) -> None:
    assert message in refusal(call(outputs, "train", f"resume={half.run}", override, "trainer.max_steps=6", page=False))


def test_quantisation_on_a_cpu_is_one_warning_and_full_precision(tmp_path: Path) -> None:
    ran = finished(tmp_path, "adapter=qlora", "trainer.max_steps=1")
    assert (ran.out + ran.err).count("adapter.bits=4 needs a CUDA device, and this run uses cpu: the base stays in full precision") == 1
    message = refusal(call(tmp_path, "train", "debug=fast", "adapter=qlora", "adapter.without_cuda=refuse", page=False))
    assert "adapter.without_cuda=full_precision trains the same adapter on whole weights" in message


@pytest.mark.slow
def test_an_adapter_on_a_run_that_was_trained_whole(tmp_path: Path) -> None:
    """Its checkpoint knows the weights it stands on, so that evaluation and resuming find them."""
    whole = finished(tmp_path, "trainer.max_steps=2")
    tuned = finished(tmp_path, "adapter=lora", f"init={whole.run}", "trainer.max_steps=2")
    assert Path(tuned.record["started_from"]).parents[1] == whole.run
    again = evaluate(tmp_path, f"run={tuned.run}")
    assert again.status == 0, again.err
    assert again.json("metrics.json")["metrics"]["AP"] == tuned.json("metrics.json")["metrics"]["AP"]
    resumed = call(tmp_path, "train", f"resume={tuned.run}", "trainer.max_steps=3", page=False)
    assert resumed.status == 0, resumed.err


def test_targets_that_match_nothing_are_refused(tmp_path: Path) -> None:
    message = refusal(call(tmp_path, "train", "debug=fast", "adapter=lora", "adapter.targets=.*query", page=False))
    assert "adapter.targets='.*query' matches no module; linear layers here: lm_head, model.language_model.layers.*" in message
