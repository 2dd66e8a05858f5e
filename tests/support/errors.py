"""The line with which something is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from converter.errors import QatconvertError


def refusal_of(
    error: type[QatconvertError], call: Callable[..., object], *arguments: object, **named: object
) -> str:
    """The one line of the ``error`` that ``call`` raises."""
    with pytest.raises(error) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)
