"""What happens inside a command, on standard error and in a file: records of the loggers ``qatconvert.*`` and
warnings of libraries. No secret gets through."""

from __future__ import annotations

import logging
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Final

import click

from converter.errors import DestinationError
from converter.names import one_line
from converter.system.amounts import amount
from converter.system.child import is_secret
from converter.system.memory import free_memory
from converter.system.output import check_elsewhere
from converter.system.processors import processors

_LOG: Final = logging.getLogger("qatconvert.command")
#: The tree of all rooms, and where Python puts warnings.
_SOURCES: Final = ("qatconvert", "py.warnings")
_HIDDEN: Final = "***"
#: A token of the Hub, a login in an address, and what stands behind ``?`` in one, which may sign it.
_SECRETS: Final = (
    (re.compile(r"\bhf_\w{8,}"), _HIDDEN),
    (re.compile(r"(?<=://)[^/\s@]+(?=@)"), _HIDDEN),
    (re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*"), rf"\1?{_HIDDEN}"),
)
#: How a line of a log begins.
_BEGINNING: Final = re.compile(rb"\d{4}-\d\d-\d\dT")
#: The shortest value that is taken for a secret, so that no word is torn out of a text.
_SHORTEST: Final = 8


@contextmanager
def logged(verbose: int, file: Path | None, apart: Path | None) -> Iterator[None]:
    """While the block runs, log to standard error if ``verbose`` (in detail from 2 on), and to ``file``.

    The file is written to behind what it holds. It gets all there is, also the traceback of what ends the
    block. Raises ``DestinationError`` for one that cannot be written, that lies in the directory ``apart``,
    or that holds something else than a log.
    """
    handlers: list[logging.Handler] = []
    if verbose:
        handlers.append(_Terminal(logging.DEBUG if verbose > 1 else logging.INFO))
    if file is not None:
        handlers.append(_opened(file, apart))
    if not handlers:
        yield
        return
    with _attached(handlers):
        _tell_surroundings()
        try:
            yield
        except BaseException:
            _LOG.debug("the command ends with an error", exc_info=True)
            raise


@contextmanager
def _attached(handlers: Sequence[logging.Handler]) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _SOURCES]
    levels = [(logger, logger.level) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        for handler in handlers:
            logger.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, level in levels:
            logger.setLevel(level)
            for handler in handlers:
                logger.removeHandler(handler)
        for handler in handlers:
            handler.close()


class _Terminal(logging.Handler):
    """Standard error, a line for each record."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.setFormatter(_Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record; who reads no more is no reason to end."""
        with suppress(OSError):
            for line in self.format(record).splitlines():
                click.echo(one_line(line), file=sys.stderr)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """The record without secrets, and without characters that would be a command to a terminal."""
        text = redacted(super().format(record))
        return "".join(one if one.isprintable() or one in "\n\t" else repr(one)[1:-1] for one in text)


def redacted(text: str) -> str:
    """``text`` without tokens, logins and signatures of addresses, and without the values of this process's
    environment that are secrets by their names."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and is_secret(name):
            text = text.replace(value, _HIDDEN)
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text


def _opened(file: Path, apart: Path | None) -> logging.Handler:
    if apart is not None:
        check_elsewhere(file, apart)
    try:
        if file.is_file() and file.stat().st_size:
            with file.open("rb") as stream:
                if not _BEGINNING.match(stream.read(16)):
                    raise DestinationError(f"{file} is no log: choose another --log-file")
        handler = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise DestinationError(
            f"{file}: no log can be written there: {error.strerror}; choose another --log-file"
        ) from error
    handler.setFormatter(
        _Formatter("%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    )
    return handler


def _tell_surroundings() -> None:
    _LOG.info("qatconvert %s: %s", version("qatconvert"), shlex.join(sys.argv[1:]))
    _LOG.info(
        "Python %s on %s, %d processors, %s of memory free",
        platform.python_version(),
        platform.platform(),
        processors(),
        amount(free_memory()),
    )
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in requires("qatconvert") or ()]
    found = {name: _version(name) for name in sorted(set(names) - {"qatconvert"})}
    _LOG.debug("packages: %s", ", ".join(f"{name} {found[name]}" for name in found if found[name]))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
