from __future__ import annotations

import pytest

from coordvlm.data.table import leaves_folder


@pytest.mark.parametrize(("name", "leaves"), [
    ("a.jpg", False), ("x/a.jpg", False), ("a..b/..c.jpg", False), ("./a.jpg", False), ("/a.jpg", True), ("\\a.jpg", True),
    ("..", True), ("x/../../a.jpg", True), ("x\\..\\a.jpg", True),
])
def test_names_that_leave_their_folder(name: str, leaves: bool) -> None:
    assert leaves_folder(name) is leaves
