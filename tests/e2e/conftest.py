"""Fast runs that several test files read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.commands import Ran, finished

#: A counting run of a few seconds whose loop takes some steps: an untrained head says ``done`` with about 0.5.
COUNTING = (
    "data=dots", "decode.stop_done=0.9", "decode.max_steps=4", "decode.questions=2", "trainer.max_steps=2",
    "data.val_images=2", "data.source.image_size=64", "data.source.num=[0,3]", "data.source.distractors=[0,2]", "data.source.radius=[4,6]",
    "model.resize.size=[64,64]",
)


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


@pytest.fixture(scope="session")
def count_run(fast_outputs: Path) -> Ran:
    """A run that counts dots, without its page."""
    return finished(fast_outputs, *COUNTING)
