"""Regression heads on chosen states of the language model. They live in ``Backbone.heads`` and stay float32 in a bfloat16 model.

Box heads read one state of an answer with one box. Point heads (counting) read the states at ``<x>``, ``<y>``, ``<done>``, and the spatial
head those of the image tokens as well.

Shapes: Q states, A questions, Nv image tokens, D width, W hidden width of the spatial head.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from coordvlm.contracts import Batch
from coordvlm.models.wide import AtLeastFloat32
from coordvlm.utils.errors import ConfigError

#: Field of ``ModelOutput`` -> the heads that give it.
HEAD_OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "box_head_end": ("box_end",),
    "box_head_start": ("box_start",),
    "point_xy": ("x", "y"),
    "done_logit": ("done",),
    "token_next": ("spatial",),
    "token_hit": ("spatial",),
    "token_offset": ("spatial",),
}
#: Heads that read a box off an answer, the one to be preferred first.
BOX_HEADS = ("box_end", "box_start")
#: Fields of ``ModelOutput`` that box heads give: what the read-out ``head`` of grounding needs.
BOX_OUTPUTS = frozenset(output for output, heads in HEAD_OUTPUTS.items() if set(heads) <= set(BOX_HEADS))
#: Column of the three states of a question that a point head reads, ``Batch.ask_row[:, column]``.
_ASK_COLUMN = {"x": 0, "y": 1, "done": 2}
#: The last layer of a point head starts this small: the first answers are near the centre of the image (the cell), and undecided.
_FIRST_SCALE = 0.1


class MLPHead(AtLeastFloat32):
    """Linear(D, D / 2), ReLU, Dropout, Linear(D / 2, outputs), without autocast.

    Args:
        generator: of the initial weights (Xavier, uniform); biases start at 0. dropout: probability.
    """

    def __init__(self, width: int, outputs: int, generator: torch.Generator, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width // 2), nn.Linear(width // 2, outputs)
        self.dropout = nn.Dropout(dropout)
        _initialise((self.inner, self.outer), generator)

    def forward(self, hidden_QD: Tensor) -> Tensor:
        """float[Q, D] in any precision -> float32[Q, outputs]."""
        with torch.autocast(hidden_QD.device.type, enabled=False):
            inner = torch.relu(self.inner(hidden_QD.to(self.inner.weight.dtype)))
            return self.outer(self.dropout(inner))  # type: ignore[no-any-return]


class BoxHead(MLPHead):
    """One box per state. It learns centre and sides, through a sigmoid, so no box is ever inside out (as in DETR, arXiv:2005.12872)."""

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__(width, 4, generator)

    def forward(self, hidden_QD: Tensor) -> Tensor:
        """float32[Q, 4], normalised xyxy with x1 <= x2, y1 <= y2; a box may reach over the edge of the image by half its side."""
        box_Q4 = super().forward(hidden_QD).sigmoid()
        centre_Q2, side_Q2 = box_Q4[..., :2], box_Q4[..., 2:]
        return torch.cat((centre_Q2 - side_Q2 / 2, centre_Q2 + side_Q2 / 2), -1)


class NumberHead(MLPHead):
    """One unbounded number per state: x or y in [-1, 1] across the image, or the logit of done."""

    def __init__(self, width: int, generator: torch.Generator, dropout: float) -> None:
        super().__init__(width, 1, generator, dropout)
        with torch.no_grad():
            self.outer.weight *= _FIRST_SCALE

    def forward(self, hidden_QD: Tensor) -> Tensor:
        """float32[Q], not clamped."""
        return super().forward(hidden_QD).squeeze(-1)


class SpatialHead(AtLeastFloat32):
    """What each image token holds, given the question: ``Linear(gelu(A n(token) + B n(question)))`` with 4 outputs, without autocast.

    The question is all three of its states, side by side, not their mean: ``<done>`` also has to serve the done head, and B can give it
    as little weight as it wants. ``n`` is a layer norm without weights of each state, as the width of states differs between models, and
    a few columns of pretrained ones are far larger than the rest.

    Args:
        width: D. hidden: W. generator: of the initial weights (Xavier, uniform); biases start at 0.
    """

    def __init__(self, width: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.token, self.question = nn.Linear(width, hidden), nn.Linear(3 * width, hidden, bias=False)
        self.outer = nn.Linear(hidden, 4)
        _initialise((self.token, self.question, self.outer), generator)
        with torch.no_grad():
            self.outer.weight *= _FIRST_SCALE

    def forward(self, token_VD: Tensor, question_A3D: Tensor, token_ask_V: Tensor) -> Tensor:
        """float32[Nv, 4]: logits of next and of hit, offsets x and y from the cell's centre in half cells, not bounded.

        Args:
            token_VD: float[Nv, D], final states. question_A3D: float[A, 3, D], at ``<x> <y> <done>``. token_ask_V: long[Nv] into A.
        """
        with torch.autocast(token_VD.device.type, enabled=False):
            dtype, width = self.token.weight.dtype, token_VD.shape[-1:]
            token = self.token(functional.layer_norm(token_VD.to(dtype), width))
            question = self.question(functional.layer_norm(question_A3D.to(dtype), width).flatten(1))
            return self.outer(functional.gelu(token + question[token_ask_V]))  # type: ignore[no-any-return]


def _initialise(layers: Collection[nn.Linear], generator: torch.Generator) -> None:
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def build_heads(
    outputs: Collection[str], width: int, *, seed: int, dropout: float | None = None, spatial_width: int | None = None
) -> nn.ModuleDict:
    """The heads that some fields of ``ModelOutput`` need; none for fields that come from tokens.

    Args:
        width: D. seed: of the initial weights, which do not depend on what else is random in a run, nor on which heads there are.
        dropout: probability in the heads x, y and done, in [0, 1). spatial_width: W, at least 1. Needed where such a head is built.
    Raises:
        ConfigError: a setting that is needed is missing or out of range.
    """
    names = sorted({name for output in outputs for name in HEAD_OUTPUTS.get(output, ())})
    return nn.ModuleDict({name: _build(name, width, seed, dropout, spatial_width) for name in names})


def _build(name: str, width: int, seed: int, dropout: float | None, spatial_width: int | None) -> nn.Module:
    generator = torch.Generator()
    if name in BOX_HEADS:
        return BoxHead(width, generator.manual_seed(seed))
    generator.manual_seed(seed + zlib.crc32(name.encode()))  # x and y must not start alike
    if name == "spatial":
        if isinstance(spatial_width, bool) or not isinstance(spatial_width, int) or spatial_width < 1:
            raise ConfigError(f"heads.spatial_width must be an integer of at least 1 for the spatial head, got {spatial_width!r}")
        return SpatialHead(width, spatial_width, generator)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ConfigError(f"heads.dropout must lie in [0, 1) for the head {name!r}, got {dropout!r}")
    return NumberHead(width, generator, float(dropout))


def read_heads(heads: nn.ModuleDict, flat_hidden: Tensor, batch: Batch, needs: Collection[str]) -> dict[str, Tensor]:
    """Those of ``needs`` that heads give, by their names in ``ModelOutput``. Also of no rows: every rank uses every head.

    Args:
        flat_hidden: [B * T, D], final states.
    Raises:
        ValueError: a head that has not been built.
    """
    wanted = sorted(HEAD_OUTPUTS.keys() & set(needs))
    for output in wanted:
        if missing := [name for name in HEAD_OUTPUTS[output] if name not in heads]:
            raise ValueError(f"{output} needs the head {missing[0]!r}, and this model has been built with {list(heads)}")
    out: dict[str, Tensor] = {}
    for output in (o for o in wanted if o in BOX_OUTPUTS):
        out[output] = heads[HEAD_OUTPUTS[output][0]](flat_hidden[_box_rows(output, batch)])
    if asked := [o for o in wanted if o not in BOX_OUTPUTS]:
        out |= _read_questions(heads, flat_hidden, batch, asked)
    return out


def _read_questions(heads: Any, flat_hidden: Tensor, batch: Batch, outputs: Collection[str]) -> dict[str, Tensor]:
    question_A3D = flat_hidden[batch.ask_row]
    numbers = {o: [heads[n](question_A3D[:, _ASK_COLUMN[n]]) for n in HEAD_OUTPUTS[o]] for o in outputs if not o.startswith("token_")}
    out = {output: found[0] if len(found) == 1 else torch.stack(found, -1) for output, found in numbers.items()}
    if len(out) < len(outputs):
        read_V4 = heads["spatial"](flat_hidden[batch.image_pos], question_A3D, batch.token_ask)
        columns = {"token_next": read_V4[:, 0], "token_hit": read_V4[:, 1], "token_offset": read_V4[:, 2:]}
        out |= {output: column for output, column in columns.items() if output in outputs}
    return out


def _box_rows(output: str, batch: Batch) -> Tensor:
    """long[Q]: flat positions of the states that a box head reads."""
    if output.endswith("_end"):
        return batch.query_row
    return batch.query_sample * batch.input_ids.shape[1] + batch.prompt_lengths[batch.query_sample] - 1
