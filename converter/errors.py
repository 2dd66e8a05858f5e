"""The one exception family whose messages reach a user.

Every message is one line: what is wrong, where, what to do.
"""

from __future__ import annotations


class QatconvertError(Exception):
    """A failure that a user can act on; ends the command with exit status 1."""

    exit_status = 1


class UsageError(QatconvertError):
    """The command was asked for something that it cannot mean; exit status 2."""

    exit_status = 2


class CheckpointError(QatconvertError):
    """A checkpoint (or another input file) is damaged, hostile or of a kind that is not supported."""


class HubError(QatconvertError):
    """The Hub has no such model, refuses it, or cannot be reached."""


class DestinationError(QatconvertError):
    """The output exists already, cannot be written, or does not fit."""


class ExtensionError(QatconvertError):
    """What an installed distribution registers cannot be loaded, or is not what it is registered as."""


class TargetError(QatconvertError):
    """A target's runtime cannot hold this model."""


class ValidationError(QatconvertError):
    """An artifact could not be run or measured (a gate that fails is a result, not an error)."""
