"""What the metrics of clips mean, and which way is better.

Arms: ``coarse``, ``fine`` and ``auto`` are ways of looking that a user may want; ``swap``, ``random``, ``no_image`` and ``no_text`` are
controls. A control has no better direction: it is not there to be improved.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

#: What each arm is, for tables.
ARM_WORDS: Mapping[str, str] = {
    "coarse": "one look with the same query everywhere",
    "fine": "looks where the coarse pass planned",
    "auto": "plans and looks one frame after the other",
    "swap": "looks where another clip's plan says (control)",
    "random": "looks with random queries (control)",
    "no_image": "sees grey frames (control)",
    "no_text": "is not told the question (control)",
}
_USEFUL = "coarse|fine|auto"
_CONTROL = "swap|random|no_image|no_text"
#: What compares a fine pass with a coarse one that was not trained alike.
NOT_EVIDENCE = re.compile(r"(ratio|gain_acc|px_ratio)_unmatched(\.\w+)?")

#: The metrics a run of clips is judged by; the first one there chooses it. The struck one is main so that nobody misses it.
FOVEATION = (
    "acc", "pck384_20", "px384_median", "acc_fine", "acc_coarse", "acc_swap", "acc_random", "px384_median_fine", "px384_median_coarse",
    "px384_median_swap", "px384_median_random", "gain_acc", "px_ratio", "ratio_matched", "ratio_unmatched",
)
FOVEATION_METRICS: Mapping[str, tuple[str, int]] = {
    "acc": ("answers in words that are right as a whole, of the reported arm", 1),
    "token_acc": ("tokens of the true answers that are the likeliest, of the reported arm", 1),
    "loss": ("nats per token of the true answers, of the reported arm", -1),
    "gain_acc": ("acc_fine − acc_coarse, both trained with the same weight", 0),
    "px_ratio": ("median error of fine over that of coarse, both trained with the same weight: below 1 looking helps", 0),
    "ratio_matched": ("loss_coarse / loss_fine, both trained with the same weight: above 1 looking helps", 0),
    "gain_acc_unmatched": ("unmatched, not evidence: the coarse pass was not trained with the weight of the fine one", 0),
    "px_ratio_unmatched": ("unmatched, not evidence: the coarse pass was not trained with the weight of the fine one", 0),
    "ratio_unmatched": ("unmatched, not evidence: the coarse pass was not trained with the weight of the fine one", 0),
    "swap_drop_acc": ("acc_fine − acc_swap: what another clip's plan costs", 0),
    "random_drop_acc": ("acc_fine − acc_random: what looking at random costs", 0),
    "swap_px_ratio": ("median error of fine over that with another clip's plan", 0),
    "random_px_ratio": ("median error of fine over that with random queries", 0),
}
FOVEATION_PATTERNS: tuple[tuple[str, str, int], ...] = (
    *(
        pattern
        for arms, better in ((_USEFUL, 1), (_CONTROL, 0))
        for pattern in (
            (rf"acc_({arms})", "answers in words that are right as a whole: {arm}", better),
            (rf"token_acc_({arms})", "tokens of the true answers that are the likeliest: {arm}", better),
            (rf"loss_({arms})", "nats per token of the true answers: {arm}", -better),
            (rf"px384_median_({arms})", "median error of points on a 384 px frame: {arm}", -better),
            (rf"px_median_({arms})", "median error of points, source px: {arm}", -better),
            (rf"pck384_5_({arms})", "points within 5 px on a 384 px frame: {arm}", better),
            (rf"pck384_20_({arms})", "points within 20 px on a 384 px frame: {arm}", better),
        )
    ),
)
_OF_VIDEO = re.compile(
    rf"(acc|token_acc|loss|px384_median|px_median|pck384_\d+)_({_USEFUL}|{_CONTROL})|acc|token_acc|loss|gain_acc|px_ratio|ratio_matched|"
    r"(swap|random)_(drop_acc|px_ratio)"
)


def is_struck(name: str) -> bool:
    """Whether a metric is no evidence and is shown struck out."""
    return NOT_EVIDENCE.fullmatch(name) is not None


def of_clips(name: str) -> bool:
    """Whether only task=video has a metric of this name; one of a kind of question counts as the metric it is of."""
    return is_struck(name) or _OF_VIDEO.fullmatch(name.partition(".")[0]) is not None


def are_of_clips(metrics: Container[str]) -> bool:
    """Whether an evaluation with these metrics is one of clips: answers in tokens, or points that heads alone are trained on."""
    return any(name in metrics for name in ("token_acc", "pck384_20_fine", "pck384_20_coarse"))


def judged_by(metrics: Container[str]) -> tuple[str, ...]:
    """``FOVEATION`` as far as it is there; () where these are no metrics of clips."""
    return tuple(name for name in FOVEATION if name in metrics) if are_of_clips(metrics) else ()


def describe_clips(name: str) -> tuple[str, int] | None:
    """Meaning and better direction; None for a metric that is not of clips."""
    base, dot, kind = name.partition(".")
    found = FOVEATION_METRICS.get(base)
    for pattern, meaning, better in FOVEATION_PATTERNS:
        if found is None and (match := re.fullmatch(pattern, base)):
            found = meaning.format(arm=ARM_WORDS[match[1]]), better
    if found is None:
        return None
    return (f"{found[0]}; questions of kind {kind}", found[1]) if dot else found
