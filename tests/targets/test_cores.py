"""Work on all cores at once."""

import time

import pytest

from lbcompiler.targets.cores import at_once


def test_the_first_error_ends_what_has_not_begun() -> None:
    begun: list[int] = []

    def one(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise ValueError("one")
        time.sleep(0.02)
        return item

    with pytest.raises(ValueError, match="one"):
        at_once(one, range(500))
    assert len(begun) < 100
