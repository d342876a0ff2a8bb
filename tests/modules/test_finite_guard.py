from __future__ import annotations

import pytest

from coordvlm.modules.finite_guard import FiniteGuard
from coordvlm.utils.errors import NonFiniteLossError
from tests.losses.test_finite import IDS, _loss


def test_at_once_where_it_costs_nothing() -> None:
    guard = FiniteGuard()
    guard.watch(_loss(), IDS, step=1)
    with pytest.raises(NonFiniteLossError, match=r"step 2: .*text_ce = nan \(samples 17\)"):
        guard.watch(_loss(text=float("nan")), IDS, step=2)


def test_a_deferred_verdict_names_the_first_bad_micro_batch_and_is_given_once() -> None:
    guard = FiniteGuard(deferred=True)
    guard.watch(_loss(), IDS, step=3)
    guard.watch(_loss(text=float("nan")), IDS, step=3)
    guard.watch(_loss(slots=float("nan")), IDS, step=3)
    with pytest.raises(NonFiniteLossError, match=r"step 3: .*text_ce = nan \(samples 17\)"):
        guard.settle()
    guard.settle()


def test_finite_losses_pass() -> None:
    guard = FiniteGuard(deferred=True)
    guard.watch(_loss(), IDS, step=0)
    guard.settle()
