"""The shipped recipes by what they need of a batch: an answer in words, a question that asks for a point (counting), or a clip."""

from __future__ import annotations

import yaml

from tests.compose import CONF


def _counts(name: str) -> bool:
    defaults = yaml.safe_load((CONF / "loss" / f"{name}.yaml").read_text())["defaults"]
    return {"/loss_term@terms.done_bce": "done_bce"} in defaults


_ALL = sorted(p.stem for p in (CONF / "loss").glob("*.yaml"))
COUNTING = [name for name in _ALL if _counts(name)]
CLIPS = [name for name in _ALL if name.startswith(("caption", "clip_"))]
ANSWERING = [name for name in _ALL if name not in (*COUNTING, *CLIPS)]
