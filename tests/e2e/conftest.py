"""Fast runs that several test files read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.commands import Ran, finished


@pytest.fixture(scope="session")
def fast_outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output root that holds ``fast_run``; tests may add runs."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="session")
def fast_run(fast_outputs: Path) -> Ran:
    """A finished run of ``debug=fast``, with its page; tests must not change it."""
    return finished(fast_outputs, page=True)


@pytest.fixture(scope="session")
def ground_run(fast_outputs: Path) -> Ran:
    """The same with phrases, without its page."""
    return finished(fast_outputs, "data=phrases")
