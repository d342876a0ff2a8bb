"""From named terms to one loss: weights, and a normaliser that is exact over ranks and accumulated micro-batches.

The loss of one optimiser step is ``sum_t w_t S_t / N_g(t)``: S_t the sum of term t and N_g the number of items of its
normaliser group, both over all ranks and all micro-batches of the step. DDP averages gradients over W ranks and Lightning
divides by A accumulation steps, so a micro-batch returns ``W A sum_t w_t S_t_local / N_g(t)``: the gradient does not depend
on how the step was cut.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import cast

import torch
from torch import Tensor, nn

from coordvlm.contracts.batch import Batch
from coordvlm.contracts.output import ModelOutput, TermOutput
from coordvlm.losses.coord_exp import CoordExp
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm
from coordvlm.utils.errors import ConfigError

AVERAGES = ("token", "group")
#: The phase-1 name of the part of the loss that a kind of item makes up; ``done_loss`` is counting's.
PHASE1_PART = {
    "text": "text_loss", "slot": "coord_ce_loss", "done": "done_loss",
    **dict.fromkeys(("box", "query", "point", "image_token", "hit"), "coord_loss"), "latent": "reconstruction_loss",
}
_ALWAYS_LOGGED = ("total_loss", "text_loss", "coord_ce_loss", "coord_loss")
_OUTPUT_FIELDS = frozenset(f.name for f in fields(ModelOutput))


class Weighted(nn.Module):
    """One entry of a recipe.

    Args:
        term: the maths.
        weight: finite, >= 0; or a list of factors, numbers or flags, whose product it is (YAML has no arithmetic). 0 takes
            the term out: it is not run and nothing it needs is computed.
        group: normaliser group shared with other terms; None means the term's own items.
        unless: a flag that takes the term out.
    """

    def __init__(self, term: LossTerm, weight: float | Sequence[float], group: str | None = None, unless: bool = False) -> None:
        super().__init__()
        self.term, self.group, self.unless = term, group, unless
        self.factors = tuple(weight) if isinstance(weight, Sequence) and not isinstance(weight, str) else (weight,)

    def weight(self, name: str) -> float:
        """The product; a factor that is no finite number >= 0 is a ``ConfigError`` under the term's name."""
        for factor in self.factors:
            if not isinstance(factor, (int, float)) or not math.isfinite(factor) or factor < 0:
                raise ConfigError(f"loss term {name!r}: a weight must be a finite number >= 0, got {factor!r}")
        if not isinstance(self.unless, bool):
            raise ConfigError(f"loss term {name!r}: unless must be true or false, got {self.unless!r}")
        return 0.0 if self.unless else float(math.prod(self.factors))


@dataclass(frozen=True)
class LossOutput:
    """The loss of one micro-batch. Everything but ``total`` is detached.

    Args:
        total: 0-dim with graph, scaled by W A: what ``backward`` is called on, and nothing to log.
        terms: term -> its unweighted share S_t_local / N_g; summed over the micro-batches and ranks of a step it is the
            step's mean.
        sums: term -> S_t_local, for means over any other span (``WeightedSum.named``).
        logs: what terms and monitors log, name -> (sum, count).
        outputs: term -> TermOutput, so that a guard can name the samples of a non-finite loss.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    sums: Mapping[str, Tensor]
    logs: Mapping[str, tuple[Tensor, int]]
    outputs: Mapping[str, TermOutput]


class WeightedSum(nn.Module):
    """A recipe: named terms, their weights and normaliser groups.

    Args:
        terms: name -> Weighted. Names are identifiers and appear in every log.
        average: ``token``: groups as the terms name them (with text and slots in ``tokens``: one mean over all supervised
            tokens). ``group``: every term over its own items, so coordinates weigh several times more.
        decode: how slots become coordinates, decoded once for all terms; needed if a term or monitor ``decodes``.
        monitors: name -> Weighted, run without gradient for what they log; a weight above 0 switches one on.
    Raises:
        ConfigError: no active term, a weight that is no finite number >= 0, a name that cannot be logged, a term that asks
            for what does not exist, an unknown ``average``.
    """

    def __init__(
        self,
        terms: Mapping[str, Weighted],
        *,
        average: str,
        decode: CoordExp | None = None,
        monitors: Mapping[str, Weighted] | None = None,
    ) -> None:
        super().__init__()
        if average not in AVERAGES:
            raise ConfigError(f"loss.average must be one of {', '.join(AVERAGES)}, got {average!r}")
        weights = {name: entry.weight(name) for name, entry in terms.items()}
        if not any(weights.values()):
            given = ", ".join(f"{n} {w:g}" for n, w in weights.items()) or "none given"
            raise ConfigError(f"the loss has no active term, so nothing would be trained (terms: {given})")
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.terms = nn.ModuleDict({_loggable(name): terms[name].term for name in self.weights})
        self.monitors = nn.ModuleDict({_loggable(n): e.term for n, e in (monitors or {}).items() if e.weight(n) > 0})
        self.groups = {n: (terms[n].group if average == "token" else None) or terms[n].term.group for n in self.weights}
        for name, term in self._parts():
            if unknown := sorted(set(term.needs) - _OUTPUT_FIELDS):
                raise ConfigError(f"loss term {name!r} needs {unknown}, which no model gives; known: {sorted(_OUTPUT_FIELDS)}")
            if term.decodes and decode is None:
                raise ConfigError(f"loss term {name!r} reads decoded coordinates, but the recipe has no `decode`")
        self.decode, self.average = decode, average

    def _term(self, name: str) -> LossTerm:
        return cast(LossTerm, self.terms[name])

    def _parts(self) -> list[tuple[str, LossTerm]]:
        """All that runs: terms, then monitors."""
        return [(name, cast(LossTerm, term)) for name, term in (*self.terms.items(), *self.monitors.items())]

    def extra_repr(self) -> str:
        return ", ".join(f"{weight:g} {name} / {self.groups[name]}" for name, weight in self.weights.items())

    @property
    def needs(self) -> frozenset[str]:
        """Fields of ``ModelOutput`` that an active term or monitor reads; nothing else has to be computed."""
        return frozenset(field for _, term in self._parts() for field in term.needs)

    def require(self, available: Collection[str], *, who: str) -> None:
        """Refuse a recipe that needs what ``who`` (a model or module, for the message) cannot give."""
        for name, term in self._parts():
            if missing := sorted(set(term.needs) - set(available)):
                raise ConfigError(f"loss term {name!r} needs {missing}, which {who} does not give; it gives {sorted(available)}")

    def require_items(self, available: Collection[str], *, who: str) -> None:
        """Refuse a recipe with a term or monitor on items that ``who`` (a task, for the message) never has: it would be 0 unnoticed."""
        for name, term in self._parts():
            if term.items not in available:
                known = ", ".join(available)
                raise ConfigError(f"loss term {name!r} is a mean over {term.items!r} items, of which {who} has none; it has {known}")

    def without_slots(self, *, format: str) -> WeightedSum:
        """This recipe for a sequence ``format`` that writes coordinates as ordinary text, where no coordinate token exists.

        Cross-entropy of coordinate tokens and of text in one mean with one weight (``ce``) is the mean over all supervised
        tokens. That is the loss of such a format, too: there every token is text, so the coordinate term just falls away, and
        with it the monitors that read coordinates. Any other term on coordinates would be lost without a word; it is refused.

        Raises:
            ConfigError: naming the term and the format.
        """
        text = {(self.groups[n], w) for n, w in self.weights.items() if self._term(n).token_ce and not self._term(n).reads_coordinates}
        lost = [n for n in self.weights if self._term(n).reads_coordinates]
        split = [n for n in lost if self._term(n).token_ce and (self.groups[n], self.weights[n]) not in text]
        if other := [n for n in lost if not self._term(n).token_ce]:
            raise ConfigError(
                f"loss term {other[0]!r} reads coordinate tokens, but sequence.format={format} writes coordinates as digits; use loss=ce"
            )
        if split:
            raise ConfigError(
                f"loss term {split[0]!r} weighs coordinate tokens apart from text, but sequence.format={format} writes coordinates as "
                "digits; use loss=ce loss.average=token with equal weights"
            )
        kept = {n: Weighted(self._term(n), w, self.groups[n]) for n, w in self.weights.items() if n not in lost}
        watching = {n: cast(LossTerm, term) for n, term in self.monitors.items()}
        monitors = {n: Weighted(term, 1.0) for n, term in watching.items() if not term.reads_coordinates}
        return WeightedSum(kept, average=self.average, decode=None, monitors=monitors)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Items per normaliser group of one micro-batch, from labels. Terms on the same items are counted once.

        In a group of text and slots both are counted; two slot terms of it share the slots.
        """
        seen: dict[tuple[str, str], tuple[str, int]] = {}
        for name, group in self.groups.items():
            term = self._term(name)
            count = term.count(batch)
            first, known = seen.setdefault((group, term.group), (name, count))
            if known != count:
                raise ValueError(
                    f"loss terms {first!r} and {name!r} both sum {term.group!r} but count {known} and {count}: "
                    "the one that sums fewer must name its `subset`"
                )
        totals = dict.fromkeys(self.groups.values(), 0)
        for (group, _), (_, count) in seen.items():
            totals[group] += count
        return totals

    def forward(
        self, output: ModelOutput, batch: Batch, counts: Mapping[str, int], *, world_size: int = 1, accumulate: int = 1
    ) -> LossOutput:
        """The micro-batch's share of the step's loss.

        Args:
            output: at least the fields in ``needs``.
            counts: items per group over all ranks and micro-batches of the optimiser step (``counts`` of each, summed). A
                group with 0 items yields zero terms, with a graph.
            world_size: W, by which DDP divides. accumulate: A, by which the trainer divides, also in a shorter last window.
        Raises:
            ValueError: a group without a count, or an output that lacks a needed field.
        """
        if missing := sorted(set(self.groups.values()) - set(counts)):
            raise ValueError(f"no window count for the normaliser groups {missing}; got {dict(counts)}")
        slots = Slots(output, batch, self.decode)
        outputs: dict[str, TermOutput] = {name: term(slots) for name, term in self.terms.items()}
        shares = {name: out.sum / max(counts[self.groups[name]], 1) for name, out in outputs.items()}
        total = torch.stack([shares[name] * weight for name, weight in self.weights.items()]).sum() * (world_size * accumulate)
        logs = {key: value for out in outputs.values() for key, value in out.logs.items()}
        with torch.no_grad():  # after the terms: what they decoded with a graph is reused, never the other way round
            for monitor in self.monitors.values():
                logs.update(monitor(slots).logs)
        return LossOutput(
            total=total,
            terms={name: share.detach() for name, share in shares.items()},
            sums={name: out.sum.detach() for name, out in outputs.items()},
            logs=logs,
            outputs=outputs,
        )

    def named(self, terms: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Values to log under their public names, the same in training (``train_``) and validation (``val_``).

        Args:
            terms: unweighted values, ``LossOutput.terms`` or ``means``.
            prefix: ``train_`` or ``val_``.
        Returns:
            ``{prefix}term/<name>`` unweighted; and, weighted so that the parts add up to the total, the phase-1 names
            ``{prefix}total_loss``, ``text_loss``, ``coord_ce_loss`` (all terms on slots, so the gate of ``coordexp`` too)
            and ``coord_loss`` (boxes, points). A part without terms is 0. With terms on done, ``done_loss``.
        """
        weighted = {name: value * self.weights[name] for name, value in terms.items()}
        zero = torch.zeros_like(next(iter(weighted.values())))
        parts = dict.fromkeys(_ALWAYS_LOGGED, zero)
        for name, value in weighted.items():
            part = PHASE1_PART.get(self._term(name).items)
            for key in ("total_loss", part) if part else ("total_loss",):
                parts[key] = parts.get(key, zero) + value
        return {f"{prefix}{k}": v for k, v in parts.items()} | {f"{prefix}term/{k}": v for k, v in terms.items()}

    def means(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
        """Term -> mean over any span, e.g. a validation epoch: ``sums`` and ``counts`` added up over it. 0 items give 0."""
        return {name: value / max(counts[self.groups[name]], 1) for name, value in sums.items()}


def _loggable(name: str) -> str:
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise ConfigError(f"a loss term cannot be named {name!r}: use a plain identifier")
    return name
