"""Logits of a safetensors checkpoint in ``transformers``; a task of ``validation.reference.process``.

Attention and experts run in their plain ("eager") form. A model that does not fit in memory is placed by
accelerate, and the modules on disk are read back from the checkpoint's own files for each forward pass. Of
Gemma 4's table of per-layer embeddings, only the rows of the tokens are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from converter.errors import ValidationError
from converter.system.bounds import LOADING_MEMORY, LOADING_SECONDS, bounded
from converter.system.memory import free_memory
from converter.system.processors import processors
from converter.system.progress import StageProgress
from validation.logits import LogitRows
from validation.metrics import compare
from validation.reference.packed import check_room, complete, is_packed, round_to, untie
from validation.reference.shards import any_index, few_open_files
from validation.reference.table import find_table

#: Share of the memory that is free which a model may take when the caller gives no limit.
_SHARE = 0.75
#: Bytes of float32 logits of one padded batch, unless a single sequence has more.
_BATCH_BYTES = 1 << 30
#: Magnitude from which on llama.cpp's GELU is 0 or the value itself.
_GELU_ENDS = 10.0
#: Names of text weights in multimodal checkpoints, as patterns, and in the text-only class.
_TEXT_NAMES = {
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}


def write_logits(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    """Write float32 logits of every position to ``output`` (.npy, ``[positions, vocabulary]``).

    Request:

    * ``model``: directory
    * ``sequences``: token ids
    * ``firsts``: for each sequence the index of the first position whose logits are wanted
    * ``output``
    * ``dtype``: a torch name
    * ``max_memory``: bytes or null
    * ``scratch``: directory for what must be rewritten to be offloaded
    * ``left_out``: names of tensors that are known not to be text weights
    * ``grids``: whether modules round what goes through them by static scales, as far as there are any
    * ``scales``: for modules by name, static scales of inputs and outputs that the checkpoint does not have;
      may be absent
    * ``untied``: whether the head is to be a module of its own, though the configuration ties it
    * ``batch_bytes``: most bytes of float32 logits of one pass of a model that is read from disk; null: 1 GiB
    * ``float16_gelu``: whether GELU goes through float16, as llama.cpp's does
    * ``gelu_noise``: whether to measure what that costs; for dense models

    Answer: ``versions`` of the libraries, ``offloaded``, ``vocabulary``, and with ``gelu_noise``
    ``gelu_kld``: the mean divergence that it makes over the compared positions of the first sequence.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(processors())
    model = load_model(request)
    offloaded = is_offloaded(model)
    sequences = request["sequences"]
    firsts = request["firsts"]
    vocabulary = model.config.get_text_config().vocab_size
    positions = sum(map(len, sequences)) - sum(firsts)
    gelu = Float16Gelu(model) if request["float16_gelu"] else None
    noise = {}
    with torch.inference_mode(), LogitRows(Path(request["output"]), positions, vocabulary) as output:
        # reading a model from disk costs more than padding: as few passes as memory for their logits allows
        most = (request["batch_bytes"] or _BATCH_BYTES) // (4 * vocabulary) if offloaded else 0
        done, wanted = 0, iter(firsts)
        for batch in batches(sequences, most):
            starts = list(islice(wanted, len(batch)))
            if gelu is not None and request["gelu_noise"] and not done:
                with gelu.leaving_last():
                    *every, plain = forward(model, [*batch, batch[0]], [*starts, starts[0]])
                exact, rounded = plain.float().numpy(), every[0].float().numpy()
                noise = {"gelu_kld": compare(exact, rounded, np.full(len(exact), -1)).mean_kld}
            else:
                every = list(forward(model, batch, starts))
            for rows in every:
                output.write(rows.float().numpy())
                done += rows.shape[0]
            progress(done, positions)
    return {
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "offloaded": offloaded,
        "vocabulary": vocabulary,
        **noise,
    }


def batches(sequences: Sequence[Sequence[int]], most: int) -> list[list[Sequence[int]]]:
    """Consecutive sequences in batches of at most ``most`` tokens, padding included, or of one sequence."""
    found: list[list[Sequence[int]]] = []
    longest = 0
    for ids in sequences:
        longest = max(longest, len(ids))
        if found and longest * (len(found[-1]) + 1) <= most:
            found[-1].append(ids)
        else:
            found.append([ids])
            longest = len(ids)
    return found


def is_offloaded(model: Any) -> bool:
    """Whether some of a model is read from disk for each forward pass."""
    return "disk" in getattr(model, "hf_device_map", {}).values()


def load_model(request: Mapping[str, Any]) -> Any:
    """The checkpoint as a model for text, with the request of ``write_logits``; ``ValidationError`` unless
    all of its text weights are the checkpoint's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    offline = {"local_files_only": True, "trust_remote_code": False}
    with bounded(LOADING_SECONDS, LOADING_MEMORY):
        config = AutoConfig.from_pretrained(request["model"], **offline)
    if request["untied"]:
        untie(config, Path(request["model"]))
    text = config.get_text_config()
    options: dict[str, Any] = {"config": config}
    if text is not config and getattr(config, "quantization_config", None) is None:
        # The text model alone: no towers in memory, and the multimodal class cannot be offloaded, for it
        # reads embeddings past accelerate's hooks (5.23). A quantised checkpoint keeps its own class,
        # whose module names its quantisation rules refer to.
        text.tie_word_embeddings = config.tie_word_embeddings
        options = {"config": text, "key_mapping": _TEXT_NAMES}
    table = find_table(Path(request["model"]), text) if options["config"] is text else None
    dtype = getattr(torch, request["dtype"])
    memory = request["max_memory"] or int(free_memory() * _SHARE)
    if is_packed(config):
        check_room(Path(request["model"]), memory)
    kind = AutoModelForCausalLM if table is None else table.model_class(text, dtype)
    with few_open_files(), any_index():
        model, info = kind.from_pretrained(
            request["model"],
            dtype=dtype,
            attn_implementation="eager",
            experts_implementation="eager",
            device_map={"": "cpu"} if is_packed(config) else "auto",
            max_memory={"cpu": memory},
            offload_folder=request["scratch"],
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported by name below, where the exception would not name it
            output_loading_info=True,
            **options,
            **offline,
        )
    info = complete(model, info, Path(request["model"]), grids=request["grids"], untied=request["untied"])
    _check_loaded(model, info, {*request["left_out"], *([] if table is None else [table.name])})
    round_to(model, request.get("scales", {}))
    model.eval()
    return model


class Float16Gelu:
    """GELU of a model that takes and gives float16, as llama.cpp's table of it does on processors
    (``ggml_vec_gelu_f32``): 0 up to -10, the value itself from 10 on."""

    def __init__(self, model: Any) -> None:
        from transformers.activations import GELUTanh

        self._left = 0
        found = [module for module in model.modules() if isinstance(module, GELUTanh)]
        if not found:
            raise ValidationError("transformers computes GELU in a way that is not known")
        for module in found:
            module.act = self

    @contextmanager
    def leaving_last(self) -> Iterator[None]:
        """Leave the last sequence of a batch to float32. The model must be dense: experts see tokens without
        their sequences."""
        self._left = 1
        try:
            yield
        finally:
            self._left = 0

    def __call__(self, values: Any) -> Any:
        """GELU of ``values``, whose first dimension is that of a batch's sequences."""
        import torch

        gelu = partial(torch.nn.functional.gelu, approximate="tanh")
        inner = torch.where(values <= -_GELU_ENDS, 0.0, gelu(values.half().float()).half().to(values.dtype))
        rounded = torch.where(values >= _GELU_ENDS, values, inner)
        if not self._left:
            return rounded
        return torch.cat([rounded[: -self._left], gelu(values[-self._left :])])


def _check_loaded(model: Any, info: Mapping[str, Any], left_out: Set[str]) -> None:
    """Refuse a model some of whose text weights are not the checkpoint's: it would prove nothing."""
    multimodal = any(".language_model." in name for name, _ in model.named_parameters())

    known = left_out | {_text_name(name) for name in left_out}

    def text(names: Iterable[Any]) -> list[str]:
        listed = {name if isinstance(name, str) else str(name[0]) for name in names} - known
        return sorted(
            name for name in listed if not multimodal or "language_model." in name or "lm_head" in name
        )

    for problem, what in (("missing_keys", "has no"), ("unexpected_keys", "has an unknown")):
        if names := text(info.get(problem, ())):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValidationError(f"transformers says that the checkpoint {what} {names[0]}{more}")
    if names := text(info.get("mismatched_keys", ())):
        raise ValidationError(f"transformers expects another shape of {names[0]}")
    if info.get("error_msgs"):
        raise ValidationError(f"transformers cannot load the checkpoint: {info['error_msgs'][0]}")


def _text_name(name: str) -> str:
    for pattern, replacement in _TEXT_NAMES.items():
        name = re.sub(pattern, replacement, name)
    return name


def forward(model: Any, batch: Sequence[Sequence[int]], firsts: Sequence[int] | None = None) -> Iterable[Any]:
    """Logits ``[length - first, vocabulary]`` of each sequence of one padded batch, from its position in
    ``firsts`` on (default: all).

    Padding stands at the end, where causal attention keeps it from every real position.
    """
    import torch

    starts = firsts or [0] * len(batch)
    longest, skipped = max(map(len, batch)), min(starts)
    ids = torch.tensor([[*row, *[row[0]] * (longest - len(row))] for row in batch])
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=longest - skipped).logits
    for row, values, first in zip(batch, logits, starts, strict=True):
        yield values[first - skipped : len(row) - skipped]
