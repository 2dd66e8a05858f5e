"""How reports and the terminal tell which prompts a runtime makes of chats, and by which template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: Digits of a SHA-256 that are shown; the report's JSON has all.
_DIGITS: Final = 12


def prompts_told(prompts: Mapping[str, Any]) -> str:
    """The block ``prompts`` of an engine, with every chat that becomes another prompt."""
    told = f"{prompts['equal']} of {prompts['chats']} chats have the checkpoint's prompt"
    if refused := prompts["refused"]:
        told += f", which refuses {refused} more"
    if left_out := prompts.get("left_out"):
        told += f"; of {left_out} more its template leaves out a part"
    listed = [("", one) for one in (prompts["difference"],) if one]
    listed += [(", by itself", one) for one in prompts["runtime_limits"]]
    for why, one in listed:
        told += f"; {one['chat']}{why}: {one.get('error') or other_tokens(one)}"
    if without := prompts.get("not_expressible"):
        reasons = dict.fromkeys(one["why"] for one in without)
        told += f"; {len(without)} more cannot be expressed there ({', '.join(reasons)})"
    return told


def chats_told(prompts: Mapping[str, Any]) -> str:
    """The same in few words: how many chats are equal, and how many the runtime cannot do."""
    told = f"{prompts['equal']} of {prompts['chats']} chats with its prompt"
    asides = []
    if limits := len(prompts["runtime_limits"]):
        asides.append(f"{limits} otherwise by the runtime itself")
    if without := len(prompts.get("not_expressible", ())):
        asides.append(f"{without} more not expressible there")
    return f"{told} ({', '.join(asides)})" if asides else told


def template_told(template: Mapping[str, Any]) -> str:
    """The hashes of the checkpoint's template and of the artifact's, what runs it, and its edits."""
    own, found = (template[key] and template[key][:_DIGITS] for key in ("sha256", "artifact_sha256"))
    if found is None:
        return f"none in the artifact; the checkpoint's has SHA-256 {own}…"
    told = f"SHA-256 {found}…, run by {template['engine']}"
    told += ", the checkpoint's" if own == found else f"; the checkpoint's has {own}…"
    if edits := template["edits"]:
        told += f"; edited, with the same prompts: {'; '.join(edits)}"
    if kept := template.get("kept"):
        told += f"; not edited: {kept}"
    return told


def other_tokens(other: Mapping[str, Any]) -> str:
    """Where token ids part, with those of the engine and those of the checkpoint."""
    return f"from token {other['token'] + 1} on {_ids(other['engine'])} for {_ids(other['checkpoint'])}"


def _ids(ids: Any) -> str:
    return " ".join(map(str, ids)) or "none"
