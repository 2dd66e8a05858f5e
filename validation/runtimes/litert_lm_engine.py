"""Child process of ``litert_lm``: what LiteRT-LM's engine makes of texts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from converter.errors import ValidationError
from converter.system.bounds import bounded
from converter.system.child import serve
from converter.system.progress import StageProgress

#: Tells the engine to keep no cache: it would write one beside the bundle, as large as its weights.
_NO_CACHE: Final = ":nocache"
#: Tokens that the engine may generate beyond those asked for, so that an answer that is shorter is one that
#: the engine ended: of its own count it makes one less.
_SPARE: Final = 8
#: How litert-lm 0.18.1 breaks off a text some of whose bytes are no characters.
_SHRUNK: Final = "Stable text shrunk"
#: What all prompts may take together, each of which has a session; an engine's memory is its own affair.
_TEMPLATE_SECONDS: Final = 60
_UNBOUNDED: Final = 1 << 40
#: Tokens before those that are scored; more only where a character has several.
_LONGEST_HEAD: Final = 16


def run_engine(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    """Tokenise, answer and score; request and answer are those of ``validation.runtimes.litert_lm``."""
    import litert_lm

    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    texts, prompts, sequences = request["texts"], request["prompts"], request["sequences"]
    total = 1 + len(prompts) + len(sequences)
    with litert_lm.ModelInfo(request["artifact"]) as info:
        context = info.max_context_tokens
    with litert_lm.Engine(
        request["artifact"], backend=litert_lm.Backend.CPU(), cache_dir=_NO_CACHE
    ) as engine:
        begin = "" if engine.bos_token_id is not None else request["begin"]
        tokens = [engine.tokenize(text) for text in texts]
        chats, template = request.get("chats", ()), request.get("template")
        print("rendering the bundle's chat template", file=sys.stderr, flush=True)  # told if the process ends
        with bounded(_TEMPLATE_SECONDS, _UNBOUNDED):
            written = [_prompt(engine, chat) for chat in chats]
        own = None if template is None else [_prompt(engine, chat, template) for chat in chats]
        progress(1, total)
        answers, scores = [], []
        for prompt in prompts:
            answers.append(_answer(engine, begin + prompt, request["count"] + _SPARE))
            progress(1 + len(answers), total)
        for ids in sequences:
            scores.append(_score(engine, ids[: context - 1], begin))
            progress(1 + len(answers) + len(scores), total)
        ends = [_end(ids) for ids in engine.eos_token_ids]
    return {
        "version": version("litert-lm"),
        "tokens": tokens,
        "prompts": written,
        "own_prompts": own,
        "ends": ends,
        "answers": answers,
        "scores": scores,
    }


def _prompt(engine: Any, chat: Mapping[str, Any], template: str | None = None) -> list[int] | str:
    """Token ids of the prompt for the next answer, by the bundle's template or another, or why there are
    none. The engine puts its start token before what the template writes, and leaves it out there."""
    from litert_lm import ThinkingConfig

    messages = chat["messages"]
    try:
        with engine.create_conversation(
            messages=list(messages[:-1]) or None,
            tools=[_declared(tool) for tool in chat["tools"]] or None,
            automatic_tool_calling=False,
            thinking_config=None if chat["thinking"] is None else ThinkingConfig(chat["thinking"]),
            chat_template=template,
        ) as one:
            text = one.render_message_to_string(messages[-1])
    except RuntimeError as error:
        return f"the chat template fails: {' '.join(str(error).split())}"
    if not text:  # so it is where the template fails
        return "the chat template writes nothing"
    start = [] if engine.bos_token_id is None else [engine.bos_token_id]
    return [*start, *engine.tokenize(text)]


def _declared(tool: Mapping[str, Any]) -> Any:
    """A tool that is told of and never called."""
    from litert_lm import Tool

    class Declared(Tool):  # type: ignore[misc, unused-ignore]
        def get_tool_description(self) -> Mapping[str, Any]:
            return tool

        def execute(self, param: Mapping[str, Any]) -> object:
            raise NotImplementedError

    return Declared()


def _end(ids: Sequence[int]) -> int:
    """The one token of a stop sequence, -1 for a sequence of several, which is no end of any checkpoint."""
    return ids[0] if len(ids) == 1 else -1


def _session(engine: Any, count: int | None = None) -> Any:
    """A conversation without a template that takes the likeliest token each time."""
    import litert_lm

    greedy = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0, seed=0)
    return engine.create_session(apply_prompt_template=False, sampler_config=greedy, max_output_tokens=count)


def _answer(engine: Any, prompt: str, count: int) -> dict[str, object]:
    pieces: list[str] = []
    whole = True
    with _session(engine, count) as session:
        session.run_prefill([prompt])
        try:
            for response in session.run_decode_async():
                pieces += response.texts
        except RuntimeError as error:
            if _SHRUNK not in str(error):
                raise
            whole = False
    return {"pieces": pieces, "whole": whole, "tokens": engine.tokenize("".join(pieces))}


def _score(engine: Any, ids: Sequence[int], begin: str) -> dict[str, object] | None:
    """Log-probabilities of the tokens ``ids``, of which the first is BOS, ``None`` if no text makes the
    engine see just these. ``begin`` stands before every prompt.

    Before it scores, litert-lm 0.18.1 puts the last token of the prompt where the last but one was. So
    another token stands between the two, which the engine forgets.
    """
    body = list(ids[1:])
    for end in range(len(body), max(len(body) - _LONGEST_HEAD, 1), -1):
        if engine.tokenize(text := engine.detokenize(body[:end])) == body[:end]:
            break
    else:
        return None
    for head, first in _heads(engine, body[:end], text):
        with _session(engine) as session:
            session.run_prefill([begin + head])
            rest = engine.detokenize(body[first:end])
            values = session.run_text_scoring([rest], True).token_scores[0]
        if len(values) != end - first:
            raise ValidationError(f"scores {len(values)} tokens of {end - first}")
        return {"first": first + 1, "values": list(values)}
    return None


def _heads(engine: Any, body: Sequence[int], text: str) -> Iterator[tuple[str, int]]:
    """Prompts that make the engine see the first tokens of ``body``, and how many each holds."""
    fillers = [(engine.detokenize(ids), ids) for ids in engine.eos_token_ids if len(ids) == 1]
    for last in range(min(_LONGEST_HEAD, len(body) - 1)):
        before, at = engine.detokenize(body[:last]), engine.detokenize(body[last : last + 1])
        rest = engine.detokenize(body[last + 1 :])
        if before + at + rest != text or engine.tokenize(rest) != body[last + 1 :]:
            continue
        for filler, ids in fillers:
            if engine.tokenize(before + filler + at) == [*body[:last], *ids, body[last]]:
                yield before + filler + at, last + 1


if __name__ == "__main__":
    serve(run_engine)
