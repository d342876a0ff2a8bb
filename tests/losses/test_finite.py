from dataclasses import replace

import pytest
import torch

from coordvlm.contracts import TermOutput
from coordvlm.losses.finite import refuse_non_finite
from coordvlm.losses.giou import GIoU
from coordvlm.losses.l1 import L1
from coordvlm.losses.text_ce import TextCE
from coordvlm.losses.weighted_sum import LossOutput, Weighted, WeightedSum
from coordvlm.utils.errors import NonFiniteLossError
from tests.batches import RAGGED, make_batch, output_of, random_logits
from tests.losses.checks import decoder

IDS = ("a", "b", 17, "d")


def _loss(*, text: float | None = None, slots: float | None = None) -> LossOutput:
    """The loss of RAGGED with the text rows of sample 2, or the slots of sample 3, replaced by one value."""
    batch = make_batch(RAGGED)
    recipe = WeightedSum(
        {"text_ce": Weighted(TextCE(), 1), "l1": Weighted(L1(), 5), "giou": Weighted(GIoU(), 2)}, average="token", decode=decoder()
    )
    output = output_of(random_logits(batch).detach(), batch)
    assert output.text_nll is not None
    assert output.slot_logits is not None
    if text is not None:
        output.text_nll[batch.text_row // batch.input_ids.shape[1] == 2] = text
    if slots is not None:
        output.slot_logits[batch.slot_row // batch.input_ids.shape[1] == 3] = slots
    out: LossOutput = recipe(output, batch, recipe.counts(batch))
    return out


def test_a_finite_loss_passes() -> None:
    refuse_non_finite(_loss(), IDS, step=3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_term_the_step_and_the_samples_are_named(value: float) -> None:
    with pytest.raises(NonFiniteLossError, match=rf"^step 3: .*: text_ce = {value} \(samples 17\)$"):
        refuse_non_finite(_loss(text=value), IDS, step=3)


def test_every_bad_term_is_named() -> None:
    with pytest.raises(NonFiniteLossError, match=r"l1 = nan \(samples 'd'\); giou = nan \(samples 'd'\)$"):
        refuse_non_finite(_loss(slots=float("nan")), IDS, step=0)


def test_a_term_without_items_and_an_overflowing_sum_are_still_named() -> None:
    good = _loss()
    nan = torch.tensor(float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"head = nan \(samples unknown\)"):
        refuse_non_finite(replace(good, total=nan, outputs={"head": TermOutput(nan, {})}), IDS, step=0)
    with pytest.raises(NonFiniteLossError, match="every term is finite"):
        refuse_non_finite(replace(good, total=nan), IDS, step=0)
