from __future__ import annotations

from coordvlm.models.adapters import Lora, add_adapter
from coordvlm.modules.trains import what_trains
from coordvlm.reports.page import Markup
from coordvlm.reports.trains import as_table, as_text
from tests.models.test_adapters import PLAIN
from tests.modules.test_optim import settings
from tests.tiny import tiny


def test_groups_add_up_and_say_what_they_are_trained_with() -> None:
    t = tiny(freeze=["vision"])
    lines = what_trains(t.backbone, settings(lr=0.1, group_lr={"rows": 0.5}, muon_lr=0.02), precision="bf16-true")
    assert [line["group"] for line in lines] == ["language", "vision", "merger", "rows"]
    assert sum(line["parameters"] for line in lines) == sum(p.numel() for p in t.backbone.parameters())
    assert sum(line["trained"] for line in lines) == sum(p.numel() for p in t.backbone.parameters() if p.requires_grad)
    by = {line["group"]: line for line in lines}
    assert by["language"]["lr"] == [0.1, 0.02]  # embeddings and norms by AdamW, matrices by Muon
    assert (by["vision"]["trained"], by["vision"]["share"], by["vision"]["lr"]) == (0, 0.0, [])
    assert (by["rows"]["lr"], by["rows"]["types"]) == ([0.5], ["float32"])
    assert by["language"]["types"] == ["bfloat16"]


def test_adapters_are_a_group_of_their_own_and_stay_float32() -> None:
    t = tiny()
    adapter = add_adapter(t.backbone, Lora(**{**PLAIN, "targets": "language_and_vision"}), source="x", seed=0)
    by = {line["group"]: line for line in what_trains(t.backbone, settings(group_lr={"adapter": 0.3}), precision="bf16-true")}
    assert by["adapter"]["trained"] == sum(p.numel() for p in adapter.parameters().values())
    assert (by["adapter"]["lr"], by["adapter"]["types"], by["adapter"]["share"]) == ([0.3], ["float32"], 1.0)
    assert [by[g]["trained"] for g in ("language", "vision", "merger")] == [0, 0, 0]
    assert by["vision"]["types"] == ["bfloat16"]


def test_the_table_is_aligned_and_can_be_absent() -> None:
    lines = what_trains(tiny().backbone, settings(), precision="32-true")
    text = as_text(lines).splitlines()
    assert len(text) == 1 + len(lines)
    assert len({line.index("%") for line in text[1:]}) == 1
    assert as_table(None) is None
    head, table = as_table(lines)  # type: ignore[misc]
    assert isinstance(table, Markup)
    assert "What trains" in str(head)
