"""What a batch trains: the terms of its task, each for the passes that it makes sense of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from coordvlm import build
from coordvlm.modules.foveated import FoveatedLM
from coordvlm.utils.errors import ConfigError
from tests.compose import compose

MIX = (
    "module.mix={caption: {share: 1, terms: [text_ce]}, draw: {share: 1, terms: [latent_mse]}, "
    "both: {share: 1, terms: [text_ce, latent_mse]}}"
)


def module(tmp_path: Path, *overrides: str) -> tuple[FoveatedLM, Any]:
    cfg = compose(tmp_path, "data=grid_symbols", "data.source.num_train=8", "data.batch_size=3", *overrides)
    experiment = build.build_experiment(cfg)
    encoder = experiment.model.encoder
    batch = encoder.collate([encoder.encode(sample, epoch=0) for sample in experiment.data.first_samples()[:3]])
    found = experiment.module
    assert isinstance(found, FoveatedLM)
    found._window_counts = found.losses.counts(batch)
    return found, batch


def test_the_task_is_chosen_per_batch_never_per_sample(tmp_path: Path) -> None:
    """Every step has one task for all its samples and passes: the loss is that of whole terms, and terms of no part have no gradient."""
    found, batch = module(tmp_path, "loss=caption_reconstruct", MIX)
    outputs = found.backbone(batch, found.losses.needs, ("coarse", "fine"))
    counts = found._window_counts
    alone = {
        name: sum(found.losses.weights[name] * float(found.losses(p[-1], batch, counts).terms[name]) for p in outputs.values())
        for name in ("text_ce", "latent_mse")
    }
    drawn = {found.mix.draw(step) for step in range(40)}
    assert drawn == {frozenset({"text_ce"}), frozenset({"latent_mse"}), frozenset({"text_ce", "latent_mse"})}
    assert [found.mix.draw(s) for s in range(40)] == [found.mix.draw(s) for s in range(40)]  # so micro-batches and ranks agree
    head = found.backbone.heads["latents"].head.out.weight
    for terms in drawn:
        assert terms is not None
        total = found._all_arms(outputs, batch, counts, terms, world_size=1, accumulate=1).total
        assert torch.isclose(total.detach(), torch.tensor(sum(alone[name] for name in terms)), rtol=1e-5)
        (gradient,) = torch.autograd.grad(total, head, retain_graph=True)
        assert bool(gradient.any()) == ("latent_mse" in terms)


def test_terms_of_the_fine_pass_leave_the_coarse_pass_alone(tmp_path: Path) -> None:
    found, batch = module(tmp_path, "loss=caption_focus", "loss.terms.entropy_hinge.term.threshold=0.0")
    assert found.trained_terms("coarse", None) == {"text_ce"}
    assert found.trained_terms("fine", None) == {"text_ce", "entropy_hinge", "query_contrast"}
    outputs = found.backbone(batch, found.losses.needs, ("coarse", "fine"))
    loss = found._all_arms(outputs, batch, found._window_counts, None, world_size=1, accumulate=1)
    each = {arm: found.losses(p[-1], batch, found._window_counts).terms for arm, p in outputs.items()}
    expected = each["coarse"]["text_ce"] + sum(found.losses.weights[n] * each["fine"][n] for n in found.losses.weights)
    assert torch.isclose(loss.total.detach(), expected, rtol=1e-5)
    assert "coarse/entropy_hinge" in loss.logs  # looked at all the same


def test_a_term_of_a_pass_that_does_not_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'entropy_hinge' trains fine alone, and of the passes only coarse train"):
        module(tmp_path, "loss=caption_focus", "module.fine_weight=0")
