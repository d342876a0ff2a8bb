from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from coordvlm.coords.vocab import CoordVocab
from coordvlm.models.coord_rows import CoordRows
from coordvlm.utils.errors import ConfigError, ContractError

USED, NUM_BASE, D, K = 300, 330, 64, 1000  # 30 padding rows: new ids lie inside the table and beyond
DIGITS = list(range(20, 30))


def vocab(first: int = USED, num_ids: int | None = None) -> CoordVocab:
    coord = np.arange(first, first + K)
    markers = {"<obj_start>": first + K, "<obj_end>": first + K + 1}
    return CoordVocab(coord, markers, end_id=2, pad_id=0, image_id=5, num_ids=first + K + 2 if num_ids is None else num_ids)


def table(seed: int = 0, mean: float = 0.02) -> nn.Embedding:
    """Used rows around a common mean, as trained tables are; padding rows are zero."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn((NUM_BASE, D), generator=g) * 0.03 + mean * torch.randn(D, generator=g)
    weight[USED:] = 0
    return nn.Embedding.from_pretrained(weight, freeze=False)


def rows(init: str = "fourier", *, head: torch.Tensor | None = None, scale: float = 1.0, **kwargs: object) -> CoordRows:
    return CoordRows(vocab(), table().weight, head, init=init, scale=scale, digit_ids=DIGITS, **kwargs)


def distance(r: CoordRows, gap: int) -> float:
    """Mean distance of two coordinate rows ``gap`` bins apart."""
    x = r.rows_in.detach()[:K]
    return float((x[gap:] - x[:-gap]).norm(dim=-1).mean())


@pytest.mark.parametrize("init", ["digits", "fourier", "mean"])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_rows_have_the_typical_norm_of_the_used_base_rows_times_scale(init: str, scale: float) -> None:
    typical = float(table().weight.detach()[:USED].norm(dim=-1).median())
    r = rows(init, scale=scale).rows_in.detach()
    norms = r[:K].norm(dim=-1) / typical
    assert r.dtype == torch.float32
    assert r.shape == (K + 2, D)
    assert float(norms.min()) > 0.9 * scale
    assert float(norms.max()) < 1.1 * scale
    assert bool((r[K:].norm(dim=-1) > 0.5 * typical).all())  # markers, whatever the scale


@pytest.mark.parametrize("init", ["digits", "fourier"])
def test_neighbouring_bins_start_closer_than_far_ones(init: str) -> None:
    r = rows(init)
    assert distance(r, 1) < 0.75 * distance(r, 100)
    x = r.rows_in.detach()[:K]
    assert float(torch.pdist(x).min()) > 1e-4  # and no two alike


def test_smooth_rows_grow_apart_step_by_step() -> None:
    r = rows("fourier")
    assert distance(r, 1) < distance(r, 3) < distance(r, 10) < distance(r, 100)


def test_digit_rows_lean_on_the_digits_they_are_written_with() -> None:
    x = nn.functional.normalize(rows("digits").rows_in.detach()[:K], dim=-1)
    digits = nn.functional.normalize(table().weight.detach()[DIGITS], dim=-1)
    near = (x[[777, 222, 5]] @ digits.T).argmax(-1)
    assert near.tolist() == [7, 2, 5]
    digits_only = rows("digits", smooth=0.0).rows_in.detach()
    torch.testing.assert_close(digits_only[123], digits_only[321])  # the mean does not know the order, the smooth part does
    assert float((x[123] - x[321]).norm()) > 0.1


def test_mean_rows_are_nearly_alike_but_not_equal() -> None:
    r = rows("mean")
    typical = float(table().weight.detach()[:USED].norm(dim=-1).median())
    assert 0.01 * typical < distance(r, 1) < 0.3 * typical
    assert distance(r, 100) == pytest.approx(distance(r, 1), rel=0.05)


def test_digits_need_the_ids_of_ten_digits() -> None:
    for ids in (None, DIGITS[:9]):
        with pytest.raises(ConfigError, match="init=digits needs the tokenizer's ids of the digits 0-9"):
            CoordRows(vocab(), table().weight, None, init="digits", scale=1.0, digit_ids=ids)


def test_an_unknown_init_is_refused() -> None:
    with pytest.raises(ConfigError, match="init must be one of digits, fourier, mean, existing, got 'furier'"):
        rows("furier")


def test_rows_are_a_function_of_the_seed_and_leave_the_global_stream_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = rows(seed=1), rows(seed=1), rows(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.rows_in, b.rows_in)
    assert not torch.equal(a.rows_in, c.rows_in)


def test_padding_rows_have_no_say_in_the_initial_values() -> None:
    changed = table()
    with torch.no_grad():
        changed.weight[USED:] = 50.0
    other = CoordRows(vocab(), changed.weight, None, init="mean", scale=1.0)
    assert torch.equal(rows("mean").rows_in, other.rows_in)


def test_an_untied_head_has_rows_of_its_own_at_its_own_scale() -> None:
    head = table(seed=9).weight.detach() * 5
    r = rows(head=head)
    assert r.out is r.rows_out
    assert float(r.rows_out.detach()[:K].norm(dim=-1).median() / head[:USED].norm(dim=-1).median()) == pytest.approx(1, rel=0.05)
    assert rows().out is not None
    assert rows().rows_out is None


def test_shadow_marks_exactly_the_base_rows_that_new_ids_cover() -> None:
    r = rows()
    assert r.num_base == NUM_BASE
    assert torch.nonzero(r.shadow).flatten().tolist() == list(range(USED, NUM_BASE))


def test_columns_and_ids_are_inverse_inside_and_beyond_the_table() -> None:
    r = rows()
    ids = torch.arange(USED + K + 2)
    columns = r.columns(ids)
    assert torch.equal(r.token_ids(columns), ids)
    assert columns[:USED].tolist() == list(range(USED))
    assert columns[USED:].tolist() == list(range(NUM_BASE, NUM_BASE + K + 2))


def test_embedding_gives_old_rows_bit_for_bit_and_new_rows_their_own() -> None:
    base, r = table(), rows()
    ids = torch.tensor([[0, 17, USED - 1, USED, USED + 29], [USED + 30, USED + K - 1, USED + K, USED + K + 1, 3]])
    out = r.embed(ids, base)
    assert torch.equal(out[0, :3], base.weight[[0, 17, USED - 1]])
    assert torch.equal(out[0, 3:], r.rows_in[[0, 29]])
    assert torch.equal(out[1, :4], r.rows_in[[30, K - 1, K, K + 1]])
    out.sum().backward()
    assert torch.nonzero(base.weight.grad.sum(-1)).flatten().tolist() == [0, 3, 17, USED - 1]
    assert torch.nonzero(r.rows_in.grad.sum(-1)).flatten().tolist() == [0, 29, 30, K - 1, K, K + 1]


def test_old_tokens_alone_still_touch_the_rows() -> None:
    """A rank whose batch has no new token must take part in the gradient exchange."""
    base, r = table(), rows()
    r.embed(torch.tensor([[1, 2]]), base).sum().backward()
    assert torch.equal(r.rows_in.grad, torch.zeros_like(r.rows_in))


def test_embedding_keeps_the_dtype_of_the_base() -> None:
    assert rows().embed(torch.tensor([[1, USED]]), table().to(torch.bfloat16)).dtype == torch.bfloat16


def test_an_id_beyond_the_table_without_a_row_is_refused() -> None:
    with pytest.raises(ContractError, match=f"token id {USED + K + 2} is beyond the table of {NUM_BASE} rows and has no row"):
        CoordRows(vocab(num_ids=USED + K + 3), table().weight, None, init="fourier", scale=1.0)


def test_derived_tables_are_not_saved() -> None:
    assert set(rows().state_dict()) == {"rows_in"}


def test_existing_rows_are_taken_from_the_table() -> None:
    big = torch.randn(USED + K + 2, D)
    ids = vocab().new_ids
    r = CoordRows(vocab(), big, None, init="existing", scale=3.0, kept_ids=ids[:-1].tolist())
    assert torch.equal(r.rows_in[:-1], big[ids[:-1]])
    assert not torch.equal(r.rows_in[-1], big[ids[-1]])  # a marker that the model did not have


def test_without_new_tokens_everything_is_the_base_table() -> None:
    base = table()
    none = CoordVocab(np.zeros(0, dtype=np.int64), {"<|box|>": 7}, end_id=2, pad_id=0, image_id=5, num_ids=USED, new_markers=())
    for head in (None, base.weight):
        r = CoordRows(none, base.weight, head, init="fourier", scale=1.0)
        ids = torch.tensor([[3, 7, 299]])
        assert torch.equal(r.embed(ids, base), base(ids))
        assert torch.equal(r.columns(ids), ids)
        assert torch.equal(r.token_ids(ids), ids)
        assert not any(p.requires_grad for p in r.parameters())
