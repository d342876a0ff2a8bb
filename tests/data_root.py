"""Where tests find real data. They skip, with a reason, when it is not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def peer_data() -> Path:
    """The folder with real data sets and published reference cases: ``COORDVLM_TEST_DATA``, else a sibling of the repository."""
    default = Path(__file__).parents[2].resolve() / "shared" / "data"
    root = Path(os.environ.get("COORDVLM_TEST_DATA") or default)
    if not root.is_dir():
        pytest.skip(f"no test data at {root}; set COORDVLM_TEST_DATA to a folder that has it")
    return root
