from __future__ import annotations

import re

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from coordvlm.utils.overrides import FREE_TEXT, flatten_keys, nearest, quote_free_text, resolved

NASTY = [
    "a, b", '"', "'", '"a", it\'s', 'a "b", c=[d]', "k=v", "x={a: 1}", "[1,2]", "1e5", "true", "null", "none", "0x1F",
    "-3", " lead and trail ", "",
    "back\\", "back\\\\", "\\'", "a\\,b", "$(x)", "${x}", "\\${x}", "${a:b}${", "$", "été 猫 🐈",
    "glob(*)", "range(1,3)", "#no comment", "a\nb\tc", "~x", "+x", "-m", "C:\\path\\", "'half", "half'", "'a' and 'b'", "a:b",
    "%s{}", "[bold]x[/bold]",
]  # fmt: skip
COMPLETE = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


def arrives(text: str) -> tuple[object, object]:
    """The value a configuration holds after one parse, and after the second one a sweep adds."""
    parser = OverridesParser.create()
    override = parser.parse_override(quote_free_text([f"phrase={text}"])[0])
    assert not override.is_sweep_override()
    (((again,),),) = BasicSweeper.split_arguments([override], None)
    values = []
    for parsed in (override, parser.parse_override(again)):
        cfg = OmegaConf.create({"phrase": None})
        OmegaConf.update(cfg, "phrase", parsed.value())
        values.append(OmegaConf.create(OmegaConf.to_yaml(cfg)).phrase)
    return values[0], values[1]


@pytest.mark.parametrize("text", NASTY)
def test_nasty_text_survives_parsing_and_sweeping(text: str) -> None:
    assert arrives(text) == (text, text)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("\\'\"${}(),[]=: \ta1é~+-"), max_size=12))
def test_any_text_that_is_not_one_quoted_string_survives(text: str) -> None:
    if not COMPLETE.fullmatch(text):
        assert arrives(text) == (text, text)


def test_null_is_a_word_in_a_phrase_and_nothing_elsewhere() -> None:
    assert quote_free_text(["run=null", "resume=null", "model.path=null", "phrase=null"]) == [
        "run=null", "resume=null", "model.path=null", "phrase='null'",
    ]  # fmt: skip


def test_other_arguments_stay_as_they_are() -> None:
    args = ["-m", "--cfg", "job", "seed=1,2", "loss=ce,hybrid", "phrases.x=1,2", "~run", "xphrase=a,b", "phrase"]
    assert quote_free_text(args) == args


@pytest.mark.parametrize("key", FREE_TEXT)
@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_every_free_text_key_is_quoted_with_any_prefix(key: str, prefix: str) -> None:
    assert quote_free_text([f"{prefix}{key}=a, b"]) == [f"{prefix}{key}='a, b'"]


def test_a_complete_quotation_is_the_users_own() -> None:
    args = ["phrase='a, b'", 'phrase="${seed}"', "phrase='it\\'s'"]
    assert quote_free_text(args) == args


def test_a_resolved_configuration_can_be_loaded_again() -> None:
    tree = {"a": ["${x}", {"b": "\\${y}"}], "c": 1, "d": None}
    assert OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(resolved(tree))), resolve=True) == tree


KEYS = [
    "loss", "loss.lambda_coord", "loss.lambda_coord_ce", "loss.alpha_l1", "optim", "optim.lr", "trainer.max_steps", "trainer.min_steps",
    "seed",
]  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        ("loss.lamda_coord", "loss.lambda_coord"),
        ("lr", "optim.lr"),
        ("trainer.max_step", "trainer.max_steps"),
        ("sead", "seed"),
        ("los.alpha_l1", "loss.alpha_l1"),
        ("LOSS", "loss"),
        ("loss.alpha", "loss.alpha_l1"),
    ],
)
def test_nearest_puts_the_likely_name_first(typed: str, first: str) -> None:
    assert nearest(typed, KEYS)[0] == first


def test_nearest_is_silent_when_nothing_is_near() -> None:
    assert nearest("qqqqqq", KEYS) == []
    assert nearest("x", []) == []


def test_flatten_keys_lists_parents_too() -> None:
    assert list(flatten_keys({"a": {"b": 1}, 3: [1]})) == ["a", "a.b", "3"]
