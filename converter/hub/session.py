"""Which Hub is asked, and as whom: what huggingface_hub is set to, checked."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from converter.errors import HubError

_CHATTY = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2")


def endpoint() -> str:
    """The address of the Hub, ``HF_ENDPOINT`` or the public one. Raises ``HubError`` for what is none."""
    from huggingface_hub import constants

    address = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    with contextlib.suppress(ValueError):
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port):
            return address
    raise HubError("HF_ENDPOINT is not an address of the form https://host: check HF_ENDPOINT, or unset it")


def token() -> str | None:
    """The user's token, if there is one. Raises ``HubError`` for what can be none."""
    from huggingface_hub import constants, get_token

    found = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if found and not (found.isascii() and found.isprintable() and " " not in found):
        raise HubError(
            "the token (HF_TOKEN or `hf auth login`) has a character that no token has: copy it again"
        )
    return found or None


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps the libraries' own messages off the terminal: they print whole addresses and servers' texts."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
