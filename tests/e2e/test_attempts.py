"""Retries and consensus in ``eval``: counted, written down, and part of the protocol."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.commands import Ran, evaluate


def test_eval_asks_several_times_and_writes_every_answer_down(fast_outputs: Path, ground_run: Ran) -> None:
    several = ("decode.samples=2", "decode.retries=1", "decode.temperature=1.5")
    ran = evaluate(fast_outputs, f"run={ground_run.run}", *several, "controls=false")
    assert ran.status == 0, ran.err
    lines = [json.loads(x) for x in (ran.run / "predictions.jsonl").read_text().splitlines()]
    before = [json.loads(x) for x in (ground_run.run / "predictions.jsonl").read_text().splitlines()]
    for line, first in zip(lines, before, strict=True):
        attempts = line["timing"]["attempts"]
        assert line["timing"]["samples"] == 2
        assert attempts == len(line["alternatives"]) == (3 if "retried" in line["flags"] else 2)
        assert line["timing"]["new_tokens"] >= first["timing"]["new_tokens"]
        assert "alternatives" not in first
    assert any("retried" in x["flags"] for x in lines)
    assert ran.record["decode"]["samples"] == 2
    assert ran.record["protocol"] != ground_run.record["protocol"]
    again = evaluate(fast_outputs, f"run={ground_run.run}", "controls=false")
    assert again.record["protocol"] == ground_run.record["protocol"]
