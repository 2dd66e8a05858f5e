"""LiteRT's interpreter on the graphs of a bundle: loading, what is checked of them, and runs of tokens.

For the child process only. Inputs and outputs are litert-torch's (``generative/export_hf``), as LiteRT-LM
feeds them:

* ``tokens`` ``[1, n]``
* ``input_pos`` ``[n]``
* ``mask`` ``[1, 1, n, context]``: what is added to attention's scores
* two caches for each layer with keys and values of its own
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.safetensors import Shard
from converter.errors import CheckpointError, ValidationError
from converter.system.amounts import amount
from converter.system.child import without_directories
from converter.system.processors import processors
from targets.litert.bundle import find_section, read_sections
from targets.litert.schema import BITS, OPERATORS, TYPES, read_model
from targets.litert.sections import EMBEDDER, MODEL, PER_LAYER_EMBEDDER, PREFILL_DECODE

#: Contents of the caches by name, float32.
Cache = Mapping[str, NDArray[np.float32]]

_BUNDLE: Final = ".litertlm"
_DECODE: Final = "decode"
_PREFILL: Final = "prefill"
_CACHE: Final = "kv_cache_"
#: Added to the scores of what must not be seen; litert-torch's number.
_UNSEEN: Final = -0.7 * float(np.finfo(np.float32).max)
#: The token of places that hold none.
_PADDING: Final = 0
#: Inputs of a decoder without embedding: the model in the bundle that makes them of tokens.
_EMBEDDERS: Final[Mapping[str, str]] = {"embeddings": EMBEDDER, "per_layer_embeddings": PER_LAYER_EMBEDDER}
#: The input and the output of such a model.
_TOKENS, _EMBEDDED = "token_ids", "embeddings"
#: Bytes copied at a time.
_PIECE: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Tensor:
    """Type and shape of an input or an output."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Function:
    """A signature of a graph, called with its inputs by name."""

    name: str
    runner: Any
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    @property
    def caches(self) -> dict[str, Tensor]:
        """The inputs that are caches."""
        return {name: tensor for name, tensor in self.inputs.items() if name.startswith(_CACHE)}

    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Outputs by name. Raises ``ValidationError`` if the runtime fails."""
        try:
            outputs: dict[str, NDArray[np.float32]] = self.runner(**feed)
        except (RuntimeError, ValueError) as error:
            raise ValidationError(f"cannot run {self.name}: {_line(error)}") from error
        return outputs


@dataclass(frozen=True, slots=True)
class Decoder:
    """The functions of a model."""

    decode: Function
    #: By the number of their tokens.
    prefills: Mapping[int, Function]
    #: For each input that other models make of tokens, their functions by the number of tokens.
    embedders: Mapping[str, Mapping[int, Function]]
    #: The length of the caches in tokens.
    context: int
    vocabulary: int
    #: Whether products with codes round activations to int8.
    rounded: bool
    threads: int
    signatures: tuple[str, ...] = field(default=())

    def empty_cache(self) -> Cache:
        """The caches before the first token."""
        return {name: np.zeros(one.shape, np.float32) for name, one in self.decode.caches.items()}

    def prefill(self, tokens: Sequence[int]) -> Cache:
        """The caches behind ``tokens``, which the functions for prefills make."""
        cache = self.empty_cache()
        for start, length in prefill_runs(len(tokens), tuple(self.prefills), self.context):
            function = self.prefills.get(length, self.decode)
            cache = self._run(function, tokens[start : start + length], length, start, cache)[1]
        return cache

    def step(self, token: int, position: int, cache: Cache) -> tuple[NDArray[np.float32], Cache]:
        """Logits ``[vocabulary]`` behind ``token``, which sees what ``cache`` holds of the positions before
        its own, and the cache with it."""
        logits, cache = self._run(self.decode, [token], 1, position, cache)
        return logits[0, 0], cache

    def _run(
        self, function: Function, tokens: Sequence[int], length: int, start: int, cache: Cache
    ) -> tuple[NDArray[np.float32], Cache]:
        padded = np.full((1, length), _PADDING, np.int32)
        padded[0, : len(tokens)] = tokens
        # places without a token are told by positions that do not grow
        positions = np.zeros(length, np.int32)
        positions[: len(tokens)] = np.arange(start, start + len(tokens))
        mask = np.full((1, 1, length, self.context), _UNSEEN, np.float32)
        for row in range(len(tokens)):
            mask[0, 0, row, : start + row + 1] = 0
        feed: dict[str, NDArray[Any]] = {"input_pos": positions, "mask": mask, **cache}
        if "tokens" in function.inputs:
            feed["tokens"] = padded
        for name, functions in self.embedders.items():
            feed[name] = functions[length]({_TOKENS: padded})[_EMBEDDED]
        outputs = function(feed)
        return outputs.get("logits", np.empty(0, np.float32)), {name: outputs[name] for name in cache}


def prefill_runs(count: int, lengths: Sequence[int], context: int) -> Iterator[tuple[int, int]]:
    """Where runs over ``count`` tokens start and how many they hold, as LiteRT-LM chooses.

    It is the longest run while it is full, then the shortest that holds the rest. None goes beyond the
    caches' ``context``, where its padding would be written over what is before it. If it must be, a run is of
    one token (1).
    """
    start = 0
    while start < count:
        rest = count - start
        fitting = sorted(length for length in lengths if start + length <= context)
        full = [length for length in fitting if length <= rest]
        holding = [length for length in fitting if length >= rest]
        if full and (full[-1] == max(lengths) or not holding):
            length = full[-1]
        else:
            length = holding[0] if holding else 1
        yield start, length
        start += length


def open_decoder(artifact: Path, scratch: Path) -> Decoder:
    """Load the models of a ``.litertlm``, copied to ``scratch`` since the interpreter wants files of its own,
    or a ``.tflite``.

    Raises ``ValidationError`` for a file that is damaged or that the runtime cannot load, for lack of room,
    and if inputs and outputs are not those of a decoder with caches.
    """
    try:
        paths = _models(artifact, scratch)
        rounded = any(_rounds(path) for path in paths.values())
    except CheckpointError as error:
        raise ValidationError(without_directories(str(error)).removeprefix(f"{artifact.name}: ")) from error
    threads = processors()
    models = {kind: _functions(path, threads) for kind, path in paths.items()}
    functions = models[PREFILL_DECODE]
    if _DECODE not in functions:
        raise ValidationError(f"has no signature {_DECODE} (only: {', '.join(sorted(functions)) or 'none'})")
    decode = functions[_DECODE]
    context = _context(decode)
    prefills = {}
    for name, function in functions.items():
        if name == _DECODE or name.startswith(_PREFILL):
            length = _check(function, decode, context)
            if function is not decode:
                prefills[length] = function
    if not prefills:
        raise ValidationError(f"has no signature {_PREFILL}_N, which fills the caches")
    embedders = {name: _embedders(models, name, functions) for name in _EMBEDDERS if name in decode.inputs}
    return Decoder(
        decode=decode,
        prefills=prefills,
        embedders=embedders,
        context=context,
        vocabulary=decode.outputs["logits"].shape[-1],
        rounded=rounded,
        threads=threads,
        signatures=tuple(sorted(name for model in models.values() for name in model)),
    )


def _models(artifact: Path, scratch: Path) -> dict[str, Path]:
    """Files with the models by kind, copies of a bundle's sections."""
    if artifact.suffix != _BUNDLE:
        return {PREFILL_DECODE: artifact}
    sections = read_sections(artifact)
    found = {PREFILL_DECODE: find_section(artifact, sections, MODEL, PREFILL_DECODE)}
    for kind in _EMBEDDERS.values():
        if any(section.model_type == kind for section in sections):
            found[kind] = find_section(artifact, sections, MODEL, kind)
    needed, free = sum(one.size for one in found.values()), shutil.disk_usage(scratch).free
    if needed > free:
        raise ValidationError(
            f"copies of its models need {amount(needed)} for temporary files, {amount(free)} are free"
        )
    paths = {}
    for kind, section in found.items():
        paths[kind] = scratch / f"{kind}.tflite"
        _copy(artifact, section.offset, section.size, paths[kind])
    return paths


def _copy(source: Path, offset: int, size: int, destination: Path) -> None:
    """Copy a part of a file, within the kernel where it can (without a second copy on some file systems)."""
    with source.open("rb") as reader, destination.open("wb") as writer:
        done = 0
        while done < size and hasattr(os, "copy_file_range"):
            try:
                count = os.copy_file_range(
                    reader.fileno(), writer.fileno(), min(_PIECE, size - done), offset + done
                )
            except OSError:  # not between these file systems; lack of room shows below
                break
            if not count:
                break
            done += count
        reader.seek(offset + done)
        writer.seek(done)
        while piece := reader.read(min(_PIECE, size - done)):
            writer.write(piece)
            done += len(piece)


def _rounds(path: Path) -> bool:
    """Whether a model multiplies with codes, which rounds activations to int8."""
    model = read_model(Shard(path))
    return any(
        OPERATORS.get(operator.code) == "FULLY_CONNECTED"
        and len(operator.inputs) > 1
        and 0 <= operator.inputs[1] < len(subgraph.tensors)
        and TYPES.get(subgraph.tensors[operator.inputs[1]].type) in BITS
        for subgraph in model.subgraphs
        for operator in subgraph.operators
    )


def _functions(path: Path, threads: int) -> dict[str, Function]:
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_path=str(path), num_threads=threads)
        functions = {}
        for name in interpreter.get_signature_list():
            runner = interpreter.get_signature_runner(name)
            inputs, outputs = _tensors(runner.get_input_details()), _tensors(runner.get_output_details())
            functions[name] = Function(name, runner, inputs, outputs)
    except (RuntimeError, ValueError) as error:
        raise ValidationError(f"cannot load it: {_line(error)}") from error
    return functions


def _tensors(details: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    return {
        name: Tensor(np.dtype(one["dtype"]).name, tuple(int(size) for size in one["shape"]))
        for name, one in details.items()
    }


def _context(decode: Function) -> int:
    mask = decode.inputs.get("mask")
    if mask is None or len(mask.shape) != 4:
        raise ValidationError(f"{_DECODE} takes {mask or 'no mask'}, expected mask [1, 1, 1, context]")
    return mask.shape[3]


def _check(function: Function, decode: Function, context: int) -> int:
    """The number of tokens that a function takes, if it is one of a decoder with ``context`` positions."""
    positions = function.inputs.get("input_pos")
    length = 1
    if function is not decode and positions is not None:
        if len(positions.shape) != 1:
            raise ValidationError(f"{function.name}: input input_pos is {positions}, expected int32 [n]")
        length = positions.shape[0]
    expected = {
        "input_pos": Tensor("int32", (length,)),
        "mask": Tensor("float32", (1, 1, length, context)),
    } | {name: _cache(name, tensor, context) for name, tensor in decode.caches.items()}
    embedded = {name: function.inputs[name] for name in _EMBEDDERS if name in function.inputs}
    if "embeddings" not in embedded:
        expected["tokens"] = Tensor("int32", (1, length))
    for name, tensor in embedded.items():
        expected[name] = Tensor("float32", (1, length, *tensor.shape[2:]))
    _compare(function, "input", function.inputs, expected)
    for name in sorted(function.inputs.keys() - expected.keys()):
        raise ValidationError(f"{function.name} has an input {name}, which a decoder with caches has not")
    results = {name: function.inputs[name] for name in decode.caches}
    if function is decode:
        logits = function.outputs.get("logits", Tensor("", ()))
        results["logits"] = Tensor("float32", (1, 1, *logits.shape[2:3]))
    _compare(function, "output", function.outputs, results)
    return length


def _cache(name: str, tensor: Tensor, context: int) -> Tensor:
    """What a cache must be: keys ``[1, heads, context, size]``, values ``[1, heads, size, context]``."""
    heads, *rest = tensor.shape[1:] if len(tensor.shape) == 4 else (1, 1, 1)
    shape = (context, rest[1]) if name.startswith(f"{_CACHE}k") else (rest[0], context)
    return Tensor("float32", (1, heads, *shape))


def _compare(
    function: Function, what: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    for name, tensor in expected.items():
        if name not in found:
            raise ValidationError(f"{function.name} has no {what} {name}, which a decoder with caches has")
        if found[name] != tensor:
            raise ValidationError(f"{function.name}: {what} {name} is {found[name]}, expected {tensor}")


def _embedders(
    models: Mapping[str, Mapping[str, Function]], name: str, functions: Mapping[str, Function]
) -> dict[int, Function]:
    """The functions that make the input ``name`` of every function of a decoder, by number of tokens."""
    kind = _EMBEDDERS[name]
    if kind not in models:
        raise ValidationError(f"its decoder takes {name}, and there is no model {kind} that makes them")
    found = {}
    for function in models[kind].values():
        tokens = function.inputs.get(_TOKENS, Tensor("", ()))
        if tokens.dtype == "int32" and len(tokens.shape) == 2 and tokens.shape[0] == 1:
            found[tokens.shape[1]] = function
    for user in functions.values():
        wanted = user.inputs.get(name)
        if wanted is None:
            raise ValidationError(f"{user.name} has no input {name}, which other signatures have")
        maker = found.get(wanted.shape[1])
        made = maker.outputs.get(_EMBEDDED) if maker is not None else None
        if made != wanted:
            raise ValidationError(f"{user.name} takes {name} as {wanted}, {kind} makes {made or 'none'}")
    return found


def _line(error: Exception) -> str:
    """The first line of a library's message, without the directories of any machine."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return without_directories(lines[0]).rstrip(".")
