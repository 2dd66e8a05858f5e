"""Whether text, chats and the ends of answers are to a runtime what they are to the checkpoint.

A runtime's tokenizer, its template engine and its rules for the ends of answers are those that users have, so
they are asked themselves, with what the artifact holds. The other side is the checkpoint's tokenizer in
transformers. What a runtime gets wrong with the checkpoint's own files too is the runtime's limit: it is
listed, and not held against the artifact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from converter.checkpoint.chats import Conversation, Inexpressible, conversations
from converter.checkpoint.generation import end_tokens
from converter.checkpoint.tokenizer import Tokenizer
from converter.system.progress import Progress, no_progress, stage_of
from validation.continuation import characters
from validation.runners import Engine, Ids, Render, Template, TextAccount, TextRuntime
from validation.settings import Prepared

#: Characters of a passage that are tokenised: a user's own text may have millions.
_PASSAGE: Final = 20_000
#: Added tokens that have a text each; Gemma has thousands without use.
_SPECIAL: Final = 64
#: Characters that are shown of a text whose tokens differ, and tokens.
_SHOWN: Final = 40
_TOKENS_SHOWN: Final = 5
#: Texts in which tokenizers differ first; the special tokens of the checkpoint come beside them. The
#: character 0, at which texts end in C, is not among them.
TEXTS: Final = (
    "",
    " ",
    "   two  and   three spaces, before and behind   ",
    "\n",
    "\n\n\nlines\r\nand\n \n\tmore\n",
    "\t\ttabs\tbetween\twords\t",
    "def f(x):\n    if x:\n\treturn {'a': [1, 2.5e-10]}\n",
    "x" * 300,
    "aB3_" * 100,
    "=" * 120 + "\n" + "-" * 77,
    "1234567890 007 3.14159 1,000,000",
    "naïve café — “quotes”, soft\u00adhyphen, e\u0301 and é",
    "敏捷的棕色狐狸跳过懒狗。今天天气很好。",
    "いろはにほへと ちりぬるを 한국어 텍스트",
    "مرحبا بالعالم שלום עולם नमस्ते दुनिया",
    "😀 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ☃️ 𐍈",
    "\u200b\u200d\ufeff\u00a0\u3000",
    "a\u0001b\u0007c\u007f",
    "<unused> <0x41> ▁ ▁▁ </s>",
)


@dataclass(frozen=True, slots=True)
class Chats:
    """The conversations whose prompts are compared."""

    #: Those that a runtime is given, each in the form that it takes.
    given: tuple[Conversation, ...]
    #: Those that it cannot be given.
    inexpressible: tuple[Inexpressible, ...] = ()

    @classmethod
    def given_to(cls, runtime: TextRuntime | Engine) -> Chats:
        """All conversations, as ``runtime`` takes them."""
        found = [runtime.given(chat) for chat in conversations()]
        return cls(
            tuple(one for one in found if isinstance(one, Conversation)),
            tuple(one for one in found if isinstance(one, Inexpressible)),
        )


def read_text_side(
    prepared: Prepared, runtime: TextRuntime, artifact: Path, scratch: Path, progress: Progress
) -> dict[str, Any]:
    """The ``engine`` of the report's ``runtime`` block for a runtime that is asked for its text side alone:
    ``name``, ``version``, ``tokenizer``, ``prompts`` (``None`` without a chat template) and ``ends``.

    Raises ``ValidationError`` when the runtime cannot read the artifact, or the artifact's template runs on.
    """
    texts = compared_texts(prepared)
    chats = Chats.given_to(runtime)
    spelled = spell(prepared, texts, progress, chats=chats.given)

    def render(
        template: str, special: Mapping[str, str], chats: Sequence[Conversation], what: str
    ) -> Sequence[Mapping[str, str]]:
        request = {
            "task": "render",
            "model": str(prepared.checkpoint.source.directory().resolve()),
            "template": template,
            "special": dict(special),
            "chats": [chat.request() for chat in chats],
            "what": what,
        }
        found: Sequence[Mapping[str, str]] = prepared.worker.call(request, no_progress, what="transformers")[
            "prompts"
        ]
        return found

    account = runtime.read(
        artifact,
        prepared.checkpoint,
        texts,
        chats.given if spelled["chats"] is not None else (),
        render,
        scratch,
        stage_of(progress, f"tokens and chats ({runtime.name})"),
    )
    return {
        "name": runtime.name,
        "version": account.version,
        **_compare(prepared, texts, chats, spelled, account, render),
    }


def _compare(
    prepared: Prepared,
    texts: Sequence[str],
    chats: Chats,
    spelled: Mapping[str, Any],
    account: TextAccount,
    render: Render,
) -> dict[str, Any]:
    checkpoint, own = prepared.checkpoint, account.own
    own_prompts = own.prompts if own and account.own_prompts is None else account.own_prompts
    tokens = compare_tokens(
        texts,
        spelled["ids"],
        account.reading.tokens,
        checkpoint.tokenizer,
        own.tokens if own else None,
        account.normalized,
    )
    if account.hidden is not None and account.hidden_by_right is not None:
        _judge_hidden(tokens, account.hidden, account.hidden_by_right, checkpoint.tokenizer)
    return {
        "tokenizer": tokens,
        "prompts": describe_prompts(
            compare_prompts(
                chats,
                spelled["chats"],
                account.reading.prompts,
                own_prompts,
                _elsewhere(chats, checkpoint.tokenizer.chat_template, account.template, render),
            ),
            checkpoint.tokenizer.chat_template,
            account.template,
        ),
        "ends": compare_ends(
            end_tokens(checkpoint.architecture, checkpoint.tokenizer),
            account.reading.ends,
            checkpoint.tokenizer,
            account.ends_by_rule,
            account.ends_lost,
        ),
    }


def _judge_hidden(
    tokens: dict[str, Any], hidden: frozenset[int], right: frozenset[int], tokenizer: Tokenizer
) -> None:
    """Add to a comparison of tokens which of them are hidden from a reader, and are not to be, or the other
    way round. Each such token counts as a text that differs."""
    wrong = sorted(hidden ^ right)
    tokens["hidden"] = {
        "tokens": len(hidden),
        "wrong": [{"id": id, "text": tokenizer.tokens[id]} for id in wrong],
    }
    different = round((1 - tokens["equal_fraction"]) * tokens["texts"])
    tokens["equal_fraction"] = 1 - (different + len(wrong)) / (tokens["texts"] + len(wrong))


def compared_texts(prepared: Prepared) -> list[str]:
    """What the tokenizers are compared on: hard texts, special tokens, and the passages."""
    added = [token.content for token in prepared.checkpoint.tokenizer.added.values()]
    special = ["".join(added), *(f"a {token} b{token}" for token in added[:_SPECIAL])]
    passages = prepared.evaluation.passages
    plain = [passage.text for passage in passages if passage.text]
    chats = ["\n".join(content for _, content in passage.turns) for passage in passages if passage.turns]
    return [*TEXTS, *special, *(text[:_PASSAGE] for text in (*plain, *chats))]


def spell(
    prepared: Prepared,
    texts: Sequence[str],
    progress: Progress,
    prompts: Sequence[Sequence[int]] = (),
    chats: Sequence[Conversation] = (),
) -> dict[str, Any]:
    """What the checkpoint's tokenizer makes of ``texts``, ``prompts`` and ``chats``; see ``tokens.spell``."""
    request: Mapping[str, object] = {
        "task": "spell",
        "model": str(prepared.checkpoint.source.directory().resolve()),
        "texts": list(texts),
        "prompts": [list(ids) for ids in prompts],
        "chats": [chat.request() for chat in chats],
    }
    return prepared.worker.call(
        request, stage_of(progress, "tokens and chats (transformers)"), what="tokenizer"
    )


def compare_tokens(
    texts: Sequence[str],
    known: Sequence[Sequence[int]],
    made: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    own: Sequence[Sequence[int]] | None = None,
    normalized: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> dict[str, Any]:
    """How many texts have the same tokens, and the shortest that has not, around its first other token.

    ``own`` is what the runtime makes with the checkpoint's own files. A text of which it makes the same
    tokens there and with the artifact's files, which are not the checkpoint's, is one of the
    ``runtime_limits``. So is one that has the checkpoint's tokens once it is ``normalized`` (by the text's
    index).
    """

    def entry(index: int) -> dict[str, Any]:
        ours, theirs = list(known[index]), list(made[index])
        at = _first_other(ours, theirs)
        begin = max(characters(map(tokenizer.bytes_of, ours[:at])) - _SHOWN // 4, 0)
        return {"text": texts[index][begin : begin + _SHOWN], **_tokens_from(at, ours, theirs)}

    unlike = [index for index in range(len(texts)) if list(known[index]) != list(made[index])]
    limits = [
        index
        for index in unlike
        if (own is not None and list(own[index]) == list(made[index]))
        or (index in normalized and list(normalized[index]) == list(known[index]))
    ]
    different = [index for index in unlike if index not in limits]
    return {
        "texts": len(texts),
        "equal": len(texts) - len(unlike),
        "equal_fraction": 1 - len(different) / len(texts),
        "difference": entry(min(different, key=lambda index: len(texts[index]))) if different else None,
        "runtime_limits": [entry(index) for index in limits],
    }


def compare_prompts(
    chats: Chats,
    known: Sequence[Mapping[str, Any]] | None,
    made: Sequence[Ids],
    own: Sequence[Ids] | None = None,
    elsewhere: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any] | None:
    """How many chats become the same prompt, token by token, and the first that does not. ``None`` if the
    checkpoint has no chat template (``known`` is ``None`` then).

    ``known`` is what ``spell`` gives of the chats. A chat that the checkpoint's template refuses is counted
    as ``refused``. One of which it leaves out a part is counted as ``left_out``. One that the runtime cannot
    be given is listed under ``not_expressible``. None of them is compared. ``elsewhere`` says, by the name of
    a chat that the runtime cannot be given, that the artifact's template makes another prompt of it all the
    same. ``own`` and ``runtime_limits`` are as in ``compare_tokens``.
    """
    if known is None:
        return None

    def entry(name: str, ours: Sequence[int], theirs: Ids) -> dict[str, Any]:
        if isinstance(theirs, str):
            return {"chat": name, "error": theirs}
        return {"chat": name, **_tokens_from(_first_other(ours, theirs), ours, theirs)}

    refused = left_out = equal = 0
    different, limits = [], []
    for index, (chat, due) in enumerate(zip(chats.given, known, strict=True)):
        theirs = made[index]
        if "error" in due or "left_out" in due:
            refused += "error" in due
            left_out += "left_out" in due
        elif not isinstance(theirs, str) and list(theirs) == list(due["ids"]):
            equal += 1
        elif own is not None and own[index] == theirs:
            limits.append(entry(chat.name, due["ids"], theirs))
        else:
            different.append(entry(chat.name, due["ids"], theirs))
    different += [{"chat": name, "error": why} for name, why in elsewhere.items()]
    compared = len(known) - refused - left_out + len(elsewhere)
    inexpressible = [one for one in chats.inexpressible if one.chat.name not in elsewhere]
    return {
        "chats": compared,
        "equal": equal,
        "equal_fraction": 1 - len(different) / compared if compared else 1.0,
        "refused": refused,
        "left_out": left_out,
        "difference": different[0] if different else None,
        "runtime_limits": limits,
        "not_expressible": [{"chat": one.chat.name, "why": one.why} for one in inexpressible],
    }


def describe_prompts(
    compared: dict[str, Any] | None, own: str | None, template: Template | None
) -> dict[str, Any] | None:
    """What ``compare_prompts`` found, and under ``template`` which template made the prompts.

    * ``sha256``: SHA-256 of the checkpoint's template
    * ``artifact_sha256``: SHA-256 of the artifact's, ``None`` without one
    * ``engine``: the program that runs the artifact's
    * ``edits`` that make it of the checkpoint's
    * ``kept``: why one was not made
    """
    if compared is None:
        return None
    return {
        **compared,
        "template": {
            "sha256": _sha256(own),
            "artifact_sha256": _sha256(template.text) if template else None,
            "engine": template.engine if template else None,
            "edits": list(template.edits) if template else [],
            **({"kept": template.kept} if template and template.kept else {}),
        },
    }


def _elsewhere(chats: Chats, own: str | None, template: Template | None, render: Render) -> dict[str, str]:
    """What differs, by the name of the chat, in prompts by transformers of chats that the runtime cannot be
    given, where the artifact's template is not the checkpoint's."""
    if own is None or template is None or template.text == own or not chats.inexpressible:
        return {}
    given = [one.chat for one in chats.inexpressible]
    due, made = (render(text, {}, given, "the chat template") for text in (own, template.text))
    return {
        chat.name: "another prompt in transformers, as the runtime cannot be given the chat"
        for chat, ours, theirs in zip(given, due, made, strict=True)
        if "text" in ours and ours["text"] != theirs.get("text")
    }


def _sha256(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode("utf-8")).hexdigest()


def compare_ends(
    known: Collection[int],
    made: Collection[int],
    tokenizer: Tokenizer,
    by_rule: Collection[int] = (),
    lost: Collection[int] = (),
) -> dict[str, Any]:
    """Tokens that end an answer: the ``checkpoint``'s and the ``engine``'s.

    Those of the engine alone are its own (``by_rule``, which it always has) or ``extra``. Those of the
    checkpoint alone have no place in the artifact (``lost``) or are ``missing``. Each is ``{"id", "text"}``.
    ``equal_fraction`` leaves out what the artifact cannot help.
    """
    ours, theirs = set(known), set(made)
    extra, missing = theirs - ours - set(by_rule), ours - theirs - set(lost)
    common = ours & theirs

    def listed(ids: Collection[int]) -> list[dict[str, Any]]:
        names = tokenizer.tokens
        return [{"id": id, "text": names[id] if 0 <= id < len(names) else None} for id in sorted(ids)]

    judged = len(common | extra | missing)
    return {
        "checkpoint": sorted(ours),
        "engine": sorted(theirs),
        "equal_fraction": len(common) / judged if judged else 1.0,
        "extra": listed(extra),
        "missing": listed(missing),
        "by_rule": listed((theirs - ours) & set(by_rule)),
        "lost": listed((ours - theirs) & set(lost)),
    }


def _first_other(ours: Sequence[int], theirs: Sequence[int]) -> int:
    pairs = zip(ours, theirs, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def _tokens_from(at: int, ours: Sequence[int], theirs: Sequence[int]) -> dict[str, Any]:
    end = at + _TOKENS_SHOWN
    return {"token": at, "checkpoint": list(ours[at:end]), "engine": list(theirs[at:end])}
