"""Retries and consensus: who is asked again, with what, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from coordvlm.contracts import TARGET, Batch, Decoded, Prediction, Record
from coordvlm.models.sampling import Sampling
from coordvlm.modules.answerer import Answerer, prompts_of
from coordvlm.utils.errors import ConfigError
from tests.models.test_decode import SIDES, decoder, noisy
from tests.tiny import tiny

SAMPLING = Sampling(1.0, 1.0, seed=0)
BOX, OTHER = (1.0, 1.0, 9.0, 9.0), (1.0, 1.0, 9.0, 8.0)
#: What the scripted model says of phrase ``id`` at each attempt: a box, "none" or nothing.
Script = dict[int, list[Any]]


class Scripted:
    """Decoder and parser in one: tokens name the sample and the attempt."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[tuple[tuple[int | str, ...], int, bool]] = []

    def decode(self, batch: Batch, *, sampling: Sampling | None = None, attempt: int = 0) -> list[Decoded]:
        self.asked.append((batch.ids, attempt, sampling is not None))
        nothing = np.zeros(2, np.float32)
        return [
            Decoded(i, np.array([i, attempt]), nothing, np.full(2, -1), nothing, nothing, nothing, truncated=False, seconds=0.5)
            for i in batch.ids
        ]

    def parse(self, decoded: Decoded, *, size: tuple[int, int], readout: str, phrase: str | None = None) -> Prediction:
        sample, attempt = decoded.token_ids.tolist()
        said = self.script[sample][attempt]
        if isinstance(said, dict):
            said = said[readout]
        records = (Record(TARGET, said, 0.5, "ok"),) if isinstance(said, tuple) else ()
        flags = frozenset({"says_none"} if said == "none" else {"no_output"} if said is None else set())
        return Prediction(sample, size, records, f"{phrase} {attempt}", flags=flags, timing={"seconds": 0.5, "new_tokens": 2.0})


def prompts(num: int, *, phrases: bool = True) -> Batch:
    batch = tiny().batch(counts=(1,) * num, sides=((32, 32),) * num)
    return replace(batch, ids=tuple(range(num)), phrases=tuple(f"p{i}" if phrases else None for i in range(num)))


def ask(script: Script, *, readouts: Sequence[str] = ("local",), **settings: Any) -> tuple[Scripted, list[Prediction]]:
    model = Scripted(script)
    found = Answerer(model, model, sampling=SAMPLING, **settings).ask(prompts(len(script)), readouts)  # type: ignore[arg-type]
    return model, found[readouts[-1]]


def test_only_the_silent_are_asked_again_until_they_speak() -> None:
    script: Script = {0: [BOX], 1: [None, None, OTHER], 2: ["none"], 3: [None, "none"], 4: [None, None, None, None]}
    model, found = ask(script, retries=3)
    assert model.asked == [((0, 1, 2, 3, 4), 0, False), ((1, 3, 4), 1, True), ((1, 4), 2, True), ((4,), 3, True)]
    assert [p.raw_text for p in found] == ["p0 0", "p1 2", "p2 0", "p3 1", "p4 0"]
    assert ["retried" in p.flags for p in found] == [False, True, False, True, True]
    assert [p.timing["attempts"] for p in found] == [1, 3, 1, 2, 4]
    assert [p.timing["new_tokens"] for p in found] == [2, 6, 2, 4, 8]
    assert [p.timing["seconds"] for p in found] == [0.5, 1.5, 0.5, 1.0, 2.0]
    assert [len(p.alternatives) for p in found] == [0, 3, 0, 2, 4]
    assert found[4].flags == {"no_output", "retried"}


def test_all_samples_are_kept_and_the_agreed_box_is_the_answer() -> None:
    script: Script = {0: [(50.0, 50.0, 60.0, 60.0), BOX, OTHER], 1: ["none", BOX, "none"], 2: [None, None, BOX]}
    model, found = ask(script, samples=3, retries=5)
    assert [attempt for _, attempt, _ in model.asked] == [0, 1, 2]  # all spoke
    assert found[0].kept[0].box_xyxy_px == BOX
    assert [a.box_xyxy_px for a in found[0].alternatives] == script[0]
    assert found[1].flags == {"says_none"}
    assert found[2].kept[0].box_xyxy_px == BOX
    assert all(p.timing["samples"] == 3 and p.timing["attempts"] == 3 and "retried" not in p.flags for p in found)


def test_samples_that_all_say_nothing_are_retried() -> None:
    model, found = ask({0: [None, None, BOX], 1: [None, BOX]}, samples=2, retries=2)
    assert [ids for ids, _, _ in model.asked] == [(0, 1), (0, 1), (0,)]
    assert found[0].flags == {"retried"}
    assert (found[0].timing["samples"], found[0].timing["attempts"]) == (2, 3)


def test_the_reported_readout_decides_who_is_asked_again_and_every_readout_is_read() -> None:
    degenerate_by_argmax = {"local": BOX, "argmax": None}
    model, found = ask({0: [degenerate_by_argmax]}, readouts=("local", "argmax"), retries=1)
    assert len(model.asked) == 1
    assert found[0].records == ()
    model, found = ask({0: [{"local": None, "argmax": OTHER}, {"local": BOX, "argmax": BOX}]}, readouts=("local", "argmax"), retries=1)
    assert len(model.asked) == 2
    assert found[0].timing["attempts"] == 2


def test_plain_greedy_is_one_decode_and_leaves_predictions_as_they_are() -> None:
    for settings, once in (({}, False), ({"samples": 4, "retries": 2}, True)):
        model = Scripted({0: [None, BOX, BOX, BOX, BOX, BOX]})
        found = Answerer(model, model, sampling=SAMPLING, **settings).ask(prompts(1), ["local"], once=once)["local"]  # type: ignore[arg-type]
        assert model.asked == [((0,), 0, False)]
        assert found == [model.parse(model.decode(prompts(1))[0], size=found[0].size, readout="local", phrase="p0")]


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"samples": 0}, "decode.samples must be an integer of at least 1"), ({"retries": -1}, "decode.retries must be"),
        ({"samples": 2.0}, "decode.samples must be"), ({"retries": True}, "decode.retries must be"),
        ({"samples": 2, "sampling": None}, "need decode.temperature"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], rule: str) -> None:
    model = Scripted({})
    with pytest.raises(ConfigError, match=rule):
        Answerer(model, model, **{"sampling": SAMPLING, **settings})  # type: ignore[arg-type]


def test_lists_of_objects_have_no_consensus() -> None:
    model = Scripted({0: [BOX, BOX]})
    with pytest.raises(ConfigError, match="are for phrases"):
        Answerer(model, model, samples=2, sampling=SAMPLING).ask(prompts(1, phrases=False), ["local"])  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [[0], [1, 3], [4], [0, 1, 2, 3, 4]])
def test_the_prompts_of_some_samples_are_answered_as_in_their_batch(rows: list[int]) -> None:
    """Images of different sizes, answers in the batch: the picked prompts bring their own pixels and positions."""
    t = noisy(1)
    batch = replace(t.batch(seed=1, counts=(2, 0, 1, 1, 3), sides=SIDES), phrases=tuple("abcde"))
    d = decoder(t, grammar=False)
    picked = prompts_of(batch, rows)
    assert picked.phrases == tuple("abcde"[i] for i in rows)
    assert picked.ids == tuple(batch.ids[i] for i in rows)
    assert len(picked.pixels) == int(picked.image_grid_thw.prod(-1).sum())
    assert not any(picked.counts.values())
    whole = d.decode(batch, sampling=SAMPLING, attempt=1)
    for got, row in zip(d.decode(picked, sampling=SAMPLING, attempt=1), rows, strict=True):
        np.testing.assert_array_equal(got.token_ids, whole[row].token_ids)
    torch.testing.assert_close(picked.position_ids, batch.position_ids[:, rows])
