"""The phase-1 recipes ``ce``, ``coordexp`` and ``hybrid``: the same named terms under three flags."""

from __future__ import annotations

import math
from collections.abc import Mapping

from coordvlm.losses.coord_exp import CoordExp
from coordvlm.losses.weighted_sum import Weighted, WeightedSum
from coordvlm.utils.errors import ConfigError


def phase1(
    *,
    terms: Mapping[str, Weighted],
    monitors: Mapping[str, Weighted],
    decode: CoordExp,
    average: str,
    use_coord_ce: bool,
    use_coordexp_loss: bool,
    use_geom_loss: bool,
    lambda_coord: float,
    lambda_coord_ce: float,
    alpha_l1: float,
    beta_giou: float,
    gate: float,
) -> WeightedSum:
    """Checks the flags as a set; what they do is written in the YAML, where the terms' weights refer to them.

    | coord_ce | coordexp | geom | trained beside text_ce |
    |---|---|---|---|
    | - | - | - | nothing |
    | - | x | - | nothing; decoded coordinates are logged |
    | - | x | x | gate, l1, giou (``coordexp``, B) |
    | x | - | - | coord_ce (``ce``, A) |
    | x | x | - | coord_ce; decoded coordinates are logged |
    | x | x | x | coord_ce, l1, giou (``hybrid``, C) |
    | any | - | x | refused |

    The gate stands in where coordinates are trained without coord_ce, which contains it.

    Args:
        terms, monitors, decode, average: see ``WeightedSum``.
        use_coord_ce, use_coordexp_loss, use_geom_loss: the flags.
        lambda_coord, lambda_coord_ce, alpha_l1, beta_giou, gate: finite, >= 0.
    Raises:
        ConfigError: geometry without a decoder, a flag that is no bool, a weight that is no finite number >= 0.
    """
    flags = {"use_coord_ce": use_coord_ce, "use_coordexp_loss": use_coordexp_loss, "use_geom_loss": use_geom_loss}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise ConfigError(f"loss.{name} must be true or false, got {flag!r}")
    weights = {
        "lambda_coord": lambda_coord, "lambda_coord_ce": lambda_coord_ce, "alpha_l1": alpha_l1, "beta_giou": beta_giou, "gate": gate,
    }
    for name, value in weights.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise ConfigError(f"loss.{name} must be a finite number >= 0, got {value!r}")
    if use_geom_loss and not use_coordexp_loss:
        raise ConfigError(
            "loss.use_geom_loss=true needs loss.use_coordexp_loss=true: l1 and giou are losses on decoded coordinates, "
            "and without the decoder there is no box to compare"
        )
    return WeightedSum(terms, average=average, decode=decode, monitors=monitors)
