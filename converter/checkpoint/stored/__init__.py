"""Stored forms: the ways in which checkpoints store weights.

A form is one module with a ``Form``, and an entry point in the group ``qatconvert.forms`` that is called as
the form is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from converter.checkpoint.stored.form import Form, Layout, Parameters, quantization_of, whole_way
from converter.checkpoint.stored.modules import Head, Tensors
from converter.errors import CheckpointError, ExtensionError, QatconvertError
from converter.system.extensions import load, provider, registered
from converter.system.untrusted import shown

__all__ = [
    "FORMS",
    "Form",
    "Head",
    "Layout",
    "Parameters",
    "Tensors",
    "find_form",
    "known_forms",
    "whole_way",
]

#: Entry points of forms.
FORMS: Final = "qatconvert.forms"


def known_forms() -> tuple[Form, ...]:
    """The registered forms that can be loaded, by name."""
    return tuple(_loaded()[0].values())


def _loaded() -> tuple[dict[str, Form], list[str]]:
    """The registered forms by the names of their entry points, and a line for each that cannot be loaded."""
    forms, broken = {}, []
    for name in registered(FORMS):
        try:
            forms[name] = load(FORMS, name, Form)
        except ExtensionError as error:
            broken.append(str(error))
    return forms, broken


def find_form(config: Mapping[str, object]) -> Form:
    """The form that recognises the checkpoint, the last resort if no other does.

    Raises ``CheckpointError`` that names what is not read, or two forms that both recognise it. Raises what a
    form does if that is a ``QatconvertError``. A form that fails otherwise does not recognise it.
    """
    forms, broken = _loaded()
    found = []
    for name, form in forms.items():
        try:
            if form.recognises(config):
                found.append(form)
        except QatconvertError:
            raise
        except Exception as error:  # another package's code, which must not take all checkpoints away
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            broken.append(f"the form {form.name} of {provider(FORMS, name)} fails on it: {cause}")
    found = [form for form in found if not form.last_resort] or found
    if len(found) > 1:
        names = " and ".join(repr(form.name) for form in found)
        raise CheckpointError(f"config.json: the stored forms {names} recognise it: uninstall all but one")
    if found:
        return found[0]
    where, section = quantization_of(config) or ("quantization_config", None)
    method = section.get("quant_method") if isinstance(section, Mapping) else section
    told = (f"{form.describes}{form.example and f', such as {form.example}'}" for form in forms.values())
    read = "; ".join([*told, *broken])
    raise CheckpointError(
        f"config.json: {where} has quant_method {shown(method)}, which is not read; read are: {read}"
    )
