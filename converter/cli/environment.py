"""Defaults of options from the environment: ``QATCONVERT_CONVERT_POSITIONS`` for ``convert --positions``.

A variable is named after the command and the option's longest spelling. It counts as a default: where an
option would have no effect, one that is given is wrong usage and one from the environment is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import click
from click.core import ParameterSource

PREFIX: Final = "QATCONVERT"


def name_variables(command: str, parameters: Sequence[click.Parameter]) -> None:
    """Let each option among the ``parameters`` of a command take its default from the environment."""
    for parameter in parameters:
        if isinstance(parameter, click.Option) and parameter.envvar is None and parameter.expose_value:
            parameter.envvar = variable(command, parameter)


def variable(command: str, option: click.Option) -> str:
    """The name of the variable."""
    flag = max(option.opts, key=len).lstrip("-")
    return "_".join((PREFIX, command, flag)).replace("-", "_").upper()


def given_by_environment(context: click.Context) -> list[str]:
    """The variables that gave an option of the running command its value."""
    return [
        str(parameter.envvar)
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is ParameterSource.ENVIRONMENT
    ]
