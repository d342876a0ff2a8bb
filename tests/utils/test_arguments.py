"""Command lines that ask for two things at once are refused in a sentence, before anything is built."""

from __future__ import annotations

import pytest

from coordvlm.eval import cli as evaluate
from coordvlm.utils.cli import REFUSED
from coordvlm.utils.errors import ConfigError
from coordvlm.utils.resume_arguments import resumed_arguments


def test_a_run_that_goes_on_starts_from_nothing_else() -> None:
    with pytest.raises(ConfigError, match="init=outputs/a has no effect with resume=outputs/b"):
        resumed_arguments(["resume=outputs/b", "init=outputs/a"])
    assert resumed_arguments(["resume=null", "init=outputs/a"]) == ["resume=null", "init=outputs/a"]


def test_the_task_of_a_trained_run_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(["run=latest", "task=ground"]) == REFUSED
    assert "task=ground is for run=null" in capsys.readouterr().err
