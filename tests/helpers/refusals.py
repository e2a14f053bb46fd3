"""What a refusal is: one line that names the file."""

from __future__ import annotations

import pytest

from carblib.base.errors import CarbError


def fails(call, path, *words):
    """Assert that a call raises a CarbError of one line with the path and the words in it; return the line."""
    with pytest.raises(CarbError) as error:
        call()
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    for word in words:
        assert word in message
    return message
