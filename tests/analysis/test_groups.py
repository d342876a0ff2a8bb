from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordvlm.analysis.groups import Group, contract_differences, differing_keys, find_group, group_runs, require_one_protocol, restrict
from coordvlm.analysis.runs import Run
from coordvlm.utils.errors import ConfigError
from tests.analysis.factory import CONTRACT

PROTOCOL = {"data": "d", "split": "test", "readout": "local"}


def run(name: str, *, seed: int = 0, loss: str = "ce", overrides: Sequence[str] = (), protocol: dict[str, Any] | None = None,
        started: str = "2026-01-01", ids: int = 4, boot: int = 0, **config: Any) -> Run:
    values = {
        "seed": seed, "data.source.seed": seed, "data.source.eval_seed": 7, "optim.lr": 0.1, "notes": name, "paths.run_dir": f"/out/{name}",
        "loss.terms.x.weight": {"ce": 0, "hybrid": 1}.get(loss, 2), **{k.replace("__", "."): v for k, v in config.items()},
    }
    return Run(
        folder=Path(f"/out/{name}"), record={"choices": {"loss": loss, "model": "tiny"}, "overrides": list(overrides), "started": started},
        config=values, seed=seed, values={"AP": 0.5}, replicates={"AP": np.full(10, 0.5)}, image_ids=np.arange(ids), bootstrap_seed=boot,
        protocol={**PROTOCOL, **(protocol or {})}, protocol_hash="p", readouts={}, counts={}, timing={}, curves={}, contract=CONTRACT,
    )


def names(runs: Sequence[Run], ignore: Sequence[str] = ()) -> dict[str, list[str]]:
    return {g.name: [r.folder.name for r in g.runs] for g in group_runs(runs, ignore=ignore)[0]}


def test_seeds_notes_and_paths_make_no_group() -> None:
    runs = [run(f"{loss}{s}", seed=s, loss=loss) for loss in ("hybrid", "ce") for s in (1, 0)]
    assert names(runs) == {"loss=ce": ["ce0", "ce1"], "loss=hybrid": ["hybrid0", "hybrid1"]}
    groups, rest = group_runs(runs, ignore=())
    assert [(g.short, g.seeds) for g in groups] == [("ce", (0, 1)), ("hybrid", (0, 1))]
    assert rest == []


def test_a_setting_within_a_recipe_is_named_after_the_override() -> None:
    runs = [run("a"), run("b", overrides=["loss.alpha=2"], loss__alpha=2, loss__terms__y=2), run("c", loss="hybrid")]
    assert names(runs) == {"loss=ce": ["a"], "loss=ce, loss.alpha=2": ["b"], "loss=hybrid": ["c"]}
    assert [g.short for g in group_runs(runs, ignore=())[0]] == ["loss=ce", "loss=ce, loss.alpha=2", "loss=hybrid"]


def test_without_overrides_the_shallowest_setting_names_the_group() -> None:
    assert set(names([run("a", optim__lr=0.1, optim__deep__er=1), run("b", optim__lr=0.02, optim__deep__er=2)])) == {
        "optim.lr=0.1", "optim.lr=0.02"
    }
    assert set(names([run("a"), run("b", optim__lr=0.02)], ignore=["optim.lr"])) == {"all runs"}
    assert set(names([run("a", optim__lr=0.1), run("b", optim__lr=0.02)], ignore=["optim."])) == {"all runs"}


def test_a_seed_of_its_own_is_a_difference() -> None:
    runs = [run("a", seed=0), run("b", seed=1, data__source__eval_seed=8)]
    assert differing_keys(runs) == ["data.source.eval_seed"]
    assert differing_keys([run("a", seed=0), run("b", seed=1, data__source__seed=5)]) == ["data.source.seed"]


def test_a_seed_that_was_run_twice_counts_once() -> None:
    runs = [run("late", started="2026-02"), run("early", started="2026-01"), run("other", seed=1)]
    groups, rest = group_runs(runs, ignore=())
    assert [r.folder.name for r in groups[0].runs] == ["late", "other"]
    assert rest[0].folder.name == "early"
    assert "the same recipe and seed (0) as /out/late" in rest[0].reason


def test_mixed_protocols_are_refused_with_what_differs() -> None:
    runs = [run("a"), run("b"), run("c", protocol={"split": "val", "readout": "argmax"})]
    with pytest.raises(ConfigError) as error:
        require_one_protocol(runs)
    text = str(error.value)
    assert "split=test: a, b" in text
    assert "split=val: c" in text
    assert "readout=argmax: c" in text
    assert "data=" not in text
    assert 'only="' in text
    assert "readout=local" in text


def test_other_readouts_may_mix_when_predictions_are_read_again() -> None:
    runs = [run("a"), run("b", protocol={"readout": "argmax"}, boot=3)]
    require_one_protocol(runs, reread=True)
    with pytest.raises(ConfigError, match="readout="):
        require_one_protocol(runs)
    with pytest.raises(ConfigError, match="split="):
        require_one_protocol([*runs, run("c", protocol={"split": "val"})], reread=True)


@pytest.mark.parametrize(("change", "named"), [({"boot": 1}, "bootstrap seed=1: b"), ({"ids": 5}, "images=5 with checksum")])
def test_replicates_that_do_not_belong_together_are_refused(change: dict[str, int], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        require_one_protocol([run("a"), run("b", **change)])  # type: ignore[arg-type]


def test_only_keeps_what_is_asked_for() -> None:
    runs = [run("a"), run("b", loss="hybrid"), run("c", loss="coordexp", protocol={"split": "val"}), run("d", seed=3, optim__lr=0.5)]

    def kept(only: str | None) -> str:
        return "".join(r.name for r in restrict(runs, only))

    assert kept(None) == kept("") == "abcd"
    assert kept("loss=ce,hybrid") == "abd"
    assert kept("split=val") == "c"
    assert kept("loss=ce seed=3") == kept("optim.lr=0.5") == "d"


@pytest.mark.parametrize(
    ("only", "message"),
    [("los=ce", "no run knows 'los'; nearest: loss"), ("loss=mixed", "leaves no run; loss is one of ce, hybrid"), ("hybrid", "name=value")],
)
def test_a_wrong_only_is_refused(only: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        restrict([run("a"), run("b", loss="hybrid")], only)


def test_the_baseline_is_found_by_any_of_its_names() -> None:
    groups = [Group("loss=ce, optim.lr=1", "loss=ce, optim.lr=1", (run("a"),)), Group("loss=hybrid", "hybrid", (run("b"),))]
    assert find_group(groups, "hybrid") is find_group(groups, "loss=hybrid") is groups[1]
    assert find_group(groups, "ce") is find_group(groups, "loss=ce") is groups[0]
    with pytest.raises(ConfigError, match=r"baseline=mixed: no group of that name; the groups: loss=ce, optim.lr=1; loss=hybrid"):
        find_group(groups, "mixed")


def test_contract_differences_are_listed_field_by_field() -> None:
    other = dataclasses.replace(CONTRACT, coords="k1000", scale=1000)
    groups = [Group("a", "a", (run("a"),)), Group("b", "b", (dataclasses.replace(run("b"), contract=other),)),
              Group("c", "c", (dataclasses.replace(run("c"), contract=None),))]
    assert contract_differences(groups) == {"coords": ["k999", "k1000", "–"], "scale": ["999", "1000", "–"]}
    assert contract_differences(groups[:1]) == {}
