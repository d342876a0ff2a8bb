from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coordvlm.contracts import Batch, ModelOutput, TermOutput
from coordvlm.losses.coord_ce import CoordCE
from coordvlm.losses.gate import Gate
from coordvlm.losses.giou import GIoU
from coordvlm.losses.l1 import L1
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm
from coordvlm.losses.text_ce import TextCE
from coordvlm.losses.weighted_sum import Weighted, WeightedSum
from coordvlm.utils.errors import ConfigError
from tests.batches import NUM_TEXT, RAGGED, hf_labels, make_batch, output_of, random_logits
from tests.losses.checks import decoder


def _sum(average: str = "token", **terms: Weighted) -> WeightedSum:
    return WeightedSum(terms, average=average, decode=decoder())


def _ce(average: str = "token") -> WeightedSum:
    return _sum(average, text_ce=Weighted(TextCE(), 1.0, "tokens"), coord_ce=Weighted(CoordCE(), 1.0, "tokens"))


def _everything() -> WeightedSum:
    return _sum(
        text_ce=Weighted(TextCE(), 1.0, "tokens"), coord_ce=Weighted(CoordCE(), 0.5, "tokens"), gate=Weighted(Gate(), 0.3),
        l1=Weighted(L1(), 5.0), giou=Weighted(GIoU(), 2.0),
    )


class _PickyText(LossTerm):
    """Text rows other than the end of turn."""

    needs = frozenset({"text_nll"})
    items = "text"
    subset = "not_end"

    def count(self, batch: Batch) -> int:
        return int((~batch.text_is_end).sum())

    def forward(self, slots: Slots) -> TermOutput:
        return TermOutput(slots.text_nll[~slots.batch.text_is_end].sum(), {})


# --- value ------------------------------------------------------------------------------------------------------------


def test_ce_is_the_mean_over_all_supervised_tokens_as_hugging_face_computes_it() -> None:
    batch = make_batch(RAGGED)
    logits, recipe = random_logits(batch), _ce()
    ours = recipe(output_of(logits, batch), batch, recipe.counts(batch)).total
    labels = F.pad(hf_labels(batch), (0, 1), value=-100)[:, 1:]  # transformers' ForCausalLMLoss
    theirs = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    assert torch.allclose(ours, theirs, atol=1e-12)
    (a,), (b,) = torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits)
    assert torch.allclose(a, b, atol=1e-14)


def test_average_group_separates_text_from_coordinates() -> None:
    batch = make_batch(RAGGED)
    logits, recipe = random_logits(batch), _ce("group")
    assert recipe.counts(batch) == {"text": 28, "slot": 24}
    rows = logits.flatten(0, 1)
    expected = F.cross_entropy(rows[batch.text_row], batch.text_target) + F.cross_entropy(rows[batch.slot_row], batch.slot_bin + NUM_TEXT)
    assert torch.allclose(recipe(output_of(logits, batch), batch, recipe.counts(batch)).total, expected)


def test_terms_on_the_same_items_of_a_group_are_counted_once() -> None:
    recipe = _sum(text=Weighted(TextCE(), 1, "tokens"), a=Weighted(CoordCE(), 1, "tokens"), b=Weighted(Gate(), 1, "tokens"))
    assert recipe.counts(make_batch(RAGGED)) == {"tokens": 28 + 24}


def test_a_subset_of_the_items_is_a_group_of_its_own() -> None:
    batch = make_batch(RAGGED)
    assert _sum(text=Weighted(TextCE(), 1), picky=Weighted(_PickyText(), 1)).counts(batch) == {"text": 28, "text:not_end": 24}
    unnamed = type("Unnamed", (_PickyText,), {"subset": None})()
    with pytest.raises(ValueError, match=r"'text' and 'unnamed' .* 28 and 24"):
        _sum(text=Weighted(TextCE(), 1), unnamed=Weighted(unnamed, 1)).counts(batch)


def test_counts_come_from_labels_and_need_no_output() -> None:
    assert _everything().counts(make_batch(RAGGED)) == {"tokens": 52, "slot": 24, "box": 6}


# --- normalisation ----------------------------------------------------------------------------------------------------

_SPLITS: list[list[list[int]]] = [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[3], [0, 1, 2]], [[0], [1], [2], [3]], [[1], [0, 3], [2]]]


def _gradient(recipe: WeightedSum, micro: Sequence[Sequence[int]], dtype: torch.dtype, *, world_size: int, accumulate: int) -> Tensor:
    """Gradient of a shared table ``[tokens, V]`` after one optimiser step over ``micro`` micro-batches of RAGGED.

    Micro-batch i belongs to rank i % W; DDP averages over ranks and the trainer divides by A, so both are applied here.
    """
    torch.manual_seed(0)
    table = torch.randn(40, 30, dtype=torch.float64).to(dtype).requires_grad_()
    batches = [make_batch([RAGGED[i] for i in part]) for part in micro]
    counts = [recipe.counts(b) for b in batches]
    window = {group: sum(c[group] for c in counts) for group in counts[0]}
    for part, batch in zip(micro, batches, strict=True):
        own = torch.stack([table * (1 + i / 7) for i in part])  # every sample has logits of its own, whoever shares its batch
        picked = own[:, : batch.input_ids.shape[1]]
        out = recipe(output_of(picked, batch), batch, window, world_size=world_size, accumulate=accumulate)
        (out.total / accumulate / world_size).backward()
    assert table.grad is not None
    return table.grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("average", ["token", "group"])
def test_the_gradient_does_not_depend_on_how_the_step_is_cut(dtype: torch.dtype, tolerance: float, average: str) -> None:
    recipe = _everything()
    recipe = WeightedSum(
        {n: Weighted(recipe._term(n), w, "tokens" if n in ("text_ce", "coord_ce") else None) for n, w in recipe.weights.items()},
        average=average, decode=decoder(),
    )
    whole = _gradient(recipe, _SPLITS[0], dtype, world_size=1, accumulate=1)
    assert whole.abs().max() > 0.01
    for micro in _SPLITS[1:]:
        for world_size in (1, 2):
            for accumulate in (len(micro), 4):  # 4: a shorter last window, where the trainer still divides by A
                cut = _gradient(recipe, micro, dtype, world_size=world_size, accumulate=accumulate)
                assert (cut - whole).abs().max() <= tolerance * whole.abs().max(), (micro, world_size, accumulate)


def test_logged_shares_add_up_to_the_mean_of_the_step() -> None:
    recipe = _everything()
    whole = make_batch(RAGGED)
    logits = random_logits(whole)
    counts = recipe.counts(whole)
    expected = recipe(output_of(logits, whole), whole, counts)
    parts = [make_batch([RAGGED[i]]) for i in range(4)]
    outs = [
        recipe(output_of(logits[i : i + 1, : b.input_ids.shape[1]], b), b, counts, world_size=2, accumulate=2) for i, b in enumerate(parts)
    ]
    for name in recipe.weights:
        assert torch.allclose(sum(o.terms[name] for o in outs), expected.terms[name])
        assert torch.allclose(recipe.means({name: sum(o.sums[name] for o in outs)}, counts)[name], expected.terms[name])
    assert torch.allclose(sum(o.total for o in outs), 4 * expected.total)


# --- edges ------------------------------------------------------------------------------------------------------------


def test_a_step_without_a_single_box_is_zero_with_a_graph_and_not_nan() -> None:
    recipe, batch = _sum(l1=Weighted(L1(), 1), giou=Weighted(GIoU(), 1), gate=Weighted(Gate(), 1)), make_batch([(), ()])
    logits = random_logits(batch)
    out = recipe(output_of(logits, batch), batch, recipe.counts(batch))
    out.total.backward()
    assert float(out.total.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()
    assert all(float(v) == 0 for v in recipe.named(out.terms, "train_").values())


def test_a_term_of_weight_zero_is_neither_run_nor_paid_for() -> None:
    recipe = _sum(text_ce=Weighted(TextCE(), 1, "tokens"), coord_ce=Weighted(CoordCE(), [True, 0.0], "tokens"), l1=Weighted(L1(), 0))
    assert recipe.needs == {"text_nll"}
    batch = make_batch(RAGGED)
    assert recipe.counts(batch) == {"tokens": 28}
    out = recipe(ModelOutput(text_nll=torch.ones(28)), batch, {"tokens": 28})
    assert set(out.terms) == {"text_ce"}
    assert float(out.total) == 1


@pytest.mark.parametrize(("weight", "expected"), [(2, 2.0), ([True, 2.0, 0.5], 1.0), ((False, 3.0), 0.0), ([], 1.0)])
def test_a_list_of_factors_is_their_product(weight: Any, expected: float) -> None:
    assert Weighted(TextCE(), weight).weight("x") == expected
    assert Weighted(TextCE(), weight, unless=True).weight("x") == 0


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0, "1", None, [1.0, float("nan")], [0.0, -1.0]])
def test_a_weight_that_is_no_finite_number_is_refused_by_name(weight: Any) -> None:
    with pytest.raises(ConfigError, match="'coord_ce'"):
        _sum(text_ce=Weighted(TextCE(), 1), coord_ce=Weighted(CoordCE(), weight))


@pytest.mark.parametrize("terms", [{}, {"text_ce": Weighted(TextCE(), 0.0)}])
def test_a_recipe_that_trains_nothing_is_refused(terms: Mapping[str, Weighted]) -> None:
    with pytest.raises(ConfigError, match=r"no active term.*(none given|text_ce 0)"):
        WeightedSum(terms, average="token")


def test_a_recipe_that_decodes_without_a_decoder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'box_error' .* `decode`"):
        WeightedSum({"box_error": Weighted(L1(), 1)}, average="token")


def test_a_need_that_no_model_has_is_refused() -> None:
    odd = type("Odd", (TextCE,), {"needs": frozenset({"text_nlls"})})()
    with pytest.raises(ConfigError, match=r"'odd' needs \['text_nlls'\]"):
        _sum(odd=Weighted(odd, 1))


def test_a_need_that_this_model_cannot_give_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"'coord_ce' needs \['slot_logits', 'slot_lse'\], which the digit format"):
        _ce().require({"text_nll"}, who="the digit format")
    _ce().require({"text_nll", "slot_logits", "slot_lse"}, who="the backbone")


@pytest.mark.parametrize("name", ["a.b", "", "items", "two words"])
def test_a_name_that_could_not_be_logged_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="identifier"):
        _sum(**{name: Weighted(TextCE(), 1)})


def test_an_unknown_average_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"token, group, got 'tokens'"):
        _ce("tokens")


def test_a_missing_window_count_and_a_missing_output_are_named() -> None:
    batch, recipe = make_batch(RAGGED), _ce()
    with pytest.raises(ValueError, match=r"\['tokens'\]"):
        recipe(output_of(random_logits(batch), batch), batch, {"text": 28})
    with pytest.raises(ValueError, match="slot_logits"):
        recipe(ModelOutput(text_nll=torch.ones(28)), batch, {"tokens": 52})


# --- logging ----------------------------------------------------------------------------------------------------------


def test_phase_one_names_are_weighted_parts_of_the_total() -> None:
    batch, recipe = make_batch(RAGGED), _everything()
    out = recipe(output_of(random_logits(batch), batch), batch, recipe.counts(batch))
    named = recipe.named(out.terms, "val_")
    assert torch.allclose(named["val_total_loss"], out.total)
    assert torch.allclose(named["val_text_loss"], out.terms["text_ce"])
    assert torch.allclose(named["val_coord_ce_loss"], 0.5 * out.terms["coord_ce"] + 0.3 * out.terms["gate"])
    assert torch.allclose(named["val_coord_loss"], 5 * out.terms["l1"] + 2 * out.terms["giou"])
    assert torch.equal(named["val_term/l1"], out.terms["l1"])
    assert not any(v.requires_grad for v in named.values())


def test_a_part_without_terms_is_logged_as_zero() -> None:
    batch, recipe = make_batch(RAGGED), _ce()
    out = recipe(output_of(random_logits(batch), batch), batch, recipe.counts(batch))
    assert float(recipe.named(out.terms, "train_")["train_coord_loss"]) == 0


def test_a_monitor_logs_without_a_gradient_and_without_a_share_of_the_loss() -> None:
    batch = make_batch(RAGGED)
    text = {"text_ce": Weighted(TextCE(), 1.0)}
    monitors = {"boxes": Weighted(GIoU(), True), "off": Weighted(Gate(), False)}
    recipe = WeightedSum(text, average="token", decode=decoder(), monitors=monitors)
    assert recipe.needs == {"text_nll", "slot_logits"}
    logits = random_logits(batch)
    out = recipe(output_of(logits, batch), batch, recipe.counts(batch))
    assert set(out.logs) == {"iou"}
    assert not out.logs["iou"][0].requires_grad
    alone = _sum(**text)
    assert torch.equal(out.total, alone(output_of(logits, batch), batch, alone.counts(batch)).total)


def test_a_monitor_does_not_cut_the_graph_of_a_term_that_shares_its_decoding() -> None:
    batch = make_batch(RAGGED)
    recipe = WeightedSum({"l1": Weighted(L1(), 1)}, average="token", decode=decoder(), monitors={"iou": Weighted(GIoU(), 1)})
    logits = random_logits(batch)
    recipe(output_of(logits, batch), batch, recipe.counts(batch)).total.backward()
    assert logits.grad is not None
    assert logits.grad.any()


def test_coordinates_are_decoded_once_for_all_terms() -> None:
    batch, recipe = make_batch(RAGGED), _everything()
    calls = []
    assert recipe.decode is not None
    recipe.decode.register_forward_hook(lambda *_: calls.append(1))
    recipe(output_of(random_logits(batch), batch), batch, recipe.counts(batch))
    assert len(calls) == 1
