from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from coordvlm.contracts import Contract, Interval
from coordvlm.reports.base_beside import BaseComparison, Beside, beside_table, comparison_to_json
from coordvlm.reports.run_report import RunSummary, write_run_report
from tests.reports.html_check import read

NAN = float("nan")


def compared(value: float, low: float = NAN, high: float = NAN, **others: Beside) -> BaseComparison:
    ap = Beside(Interval(0.2, 0.1, 0.3), Interval(0.2 + value, 0.3, 0.6), Interval(value, low, high), 0.002)
    return BaseComparison("tiny (base model, untouched)", "outputs/eval/x", 500, {"AP": ap, **others})


@pytest.mark.parametrize(
    ("found", "sentence", "verdict"),
    [
        (compared(0.312, 0.2801, 0.3409), "Tuned beats base by 31.2 AP [28.0, 34.1].", "good"),
        (compared(-0.05, -0.081, -0.02), "Tuned is worse than base by 5.0 AP [2.0, 8.1].", "bad"),
        (compared(0.004, -0.012, 0.02), "Tuned and base cannot be told apart: +0.4 AP [-1.2, 2.0].", "warn"),
        (compared(0.0, 0.0, 0.0), "Tuned and base cannot be told apart: +0.0 AP [0.0, 0.0].", "warn"),
        (compared(-0.1), "Tuned is −10.0 AP from base; without replicates nothing says whether that is more than chance.", "warn"),
        (compared(NAN), "AP is undefined on one of the two, so there is no verdict.", "warn"),
        (BaseComparison("x", "y", 0, {}), "AP was not measured on both, so there is no verdict.", "warn"),
    ],
)
def test_the_verdict_is_a_sentence(found: BaseComparison, sentence: str, verdict: str) -> None:
    assert (found.sentence, found.verdict) == (sentence, verdict)


def test_lower_is_better_for_errors() -> None:
    error = Beside(Interval(5.0), Interval(3.0), Interval(-2.0, -2.5, -1.5))
    assert error.better("px_mean") == 1
    assert error.better("AP") == -1
    assert error.better("tokens_per_image") == 0


def test_the_page_says_it_first_and_shows_both(run: RunSummary, tmp_path: Path) -> None:
    both = compared(
        0.312, 0.28, 0.34, px_median=Beside(Interval(4.0), Interval(1.25), Interval(-2.75, -3.0, -2.0)),
        pck_5=Beside(Interval(0.5), Interval(NAN), Interval(NAN)),
    )
    page = read(write_run_report(tmp_path / "report.html", replace(run, base=both, load_image=None, curves={})))
    text = " ".join(" ".join(page.text).split())
    assert text.index("Tuned beats base by 31.2 AP [28.0, 34.0].") < text.index("shapes_hybrid finished python")
    assert "AP ↑ 0.2000 0.5120 +0.3120 +0.2800 to +0.3400 better" in text
    assert "px_median ↓ 4.00 1.25 −2.75 −3.00 to −2.00 better" in text
    assert "pck_5 ↑ 0.5000 – – –" in text
    assert next(a["id"] for tag, a in page.tags if tag == "section") == "base"
    assert ("a", "#base") in [(tag, a.get("href")) for tag, a in page.tags]


def test_without_a_base_there_is_no_word_of_it(run: RunSummary, tmp_path: Path) -> None:
    page = read(write_run_report(tmp_path / "report.html", replace(run, load_image=None, curves={})))
    assert "#base" not in [a.get("href") for _, a in page.tags]


def test_the_terminal_ends_with_the_sentence() -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(beside_table(compared(0.312, 0.28, 0.34)))
    lines = [line.strip() for line in console.export_text().splitlines() if line.strip()]
    assert lines[-1] == "Tuned beats base by 31.2 AP [28.0, 34.0]."
    assert lines[-2].split() == ["AP", "↑", "0.2000", "0.5120", "+0.3120", "+0.2800", "to", "+0.3400"]


def test_json_has_null_where_something_is_undefined() -> None:
    found = comparison_to_json(compared(0.1))
    assert found["metrics"] == {"AP": {"base": 0.2, "tuned": pytest.approx(0.3), "difference": 0.1, "low": None, "high": None,
                                       "p_value": 0.002}}


@pytest.mark.parametrize(
    ("coords", "scale", "words"),
    [
        ("qwen1000", 1000, "is written as the digits of k = floor(1000 c + 0.5) , and read as k / 1000"),
        ("pixel", 0, "is written as the digits of k = floor(c W' + 0.5) , px of the resized image"),
        ("unit", 10_000, "is written as digits, with 4 decimals ."),
    ],
)
def test_digits_are_not_called_bins(run: RunSummary, tmp_path: Path, coords: str, scale: int, words: str) -> None:
    contract = run.contract
    assert isinstance(contract, Contract)
    digits = replace(contract, coords=coords, scale=scale, num_bins=0, format="json_digits")
    page = read(write_run_report(tmp_path / "report.html", replace(run, contract=digits, load_image=None, curves={})))
    text = " ".join(" ".join(page.text).split())
    assert words.removesuffix(" .") in text
    assert "0 bins" not in text
