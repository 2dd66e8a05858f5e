"""A decoder in onnxruntime: checked, loaded, and run with its cache of keys and values. For children."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from converter.errors import ValidationError
from converter.system.child import without_directories
from converter.system.processors import processors
from targets.onnx.accuracy import graphs, parse, with_accuracy_level
from validation.runtimes.onnxruntime import find_provider, short_name

_PAST: Final = "past_key_values."
_PRESENT: Final = "present."
_TYPES: Final = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
#: Where initializers lie that are not in the model's own bytes (onnxruntime_session_options_config_keys.h).
_FOLDER: Final = "session.model_external_initializers_file_folder_path"

_PREAMBLE: Final = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
#: Keys and values of earlier tokens: onnxruntime's own arrays by input name.
Cache = Mapping[str, Any]


def read_model(path: Path) -> bytes:
    """The model without its external data, after the onnx checker and a look at the data's extent.

    Raises ``ValidationError``, one line that names the file.
    """
    import onnx

    try:
        model = path.read_bytes()
        for name, location, end in _external(model):
            if Path(location).name == location:  # one that leads elsewhere is the checker's business
                _check_extent(path.with_name(location), name, end)
        # the path, not the model: a model of more than 2 GB cannot be serialised, and data is looked at too
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValidationError(f"the onnx checker refuses it: {_line(error)}") from error
    except ValueError as error:
        raise ValidationError(f"is no ONNX model or damaged ({_line(error)})") from error
    except OSError as error:
        raise ValidationError(f"{path.name}: cannot be read: {error.strerror}") from error
    return model


def _external(model: bytes) -> Iterator[tuple[str, str, int]]:
    """Name, file and end in that file of every tensor that lies outside the model."""
    from onnx import TensorProto

    for graph in graphs(parse(model)):
        for tensor in graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
                yield tensor.name, entries.get("location", ""), end


def _check_extent(path: Path, name: str, end: int) -> None:
    """Raise ``ValidationError`` unless a data file is there and long enough for the tensor ``name``."""
    if not path.is_file():
        raise ValidationError(f"{path.name}, where its weights lie, is missing: copy it beside the model")
    if (size := path.stat().st_size) < end:
        raise ValidationError(
            f"{path.name} is cut off: it has {size:,} bytes, and tensor {name} ends at {end:,}; "
            "copy it again or convert anew"
        )


@dataclass(frozen=True, slots=True)
class Decoder:
    """A session and what is asked of it."""

    session: Any
    #: Names of its inputs.
    inputs: frozenset[str]
    #: For each input of the cache, in order, the output that continues it.
    presents: Mapping[str, str]
    #: Dtype of each input of the cache, and its shape for no tokens.
    empties: Mapping[str, tuple[Any, tuple[int, ...]]]
    threads: int

    def empty_cache(self) -> Cache:
        """The cache before the first token."""
        from onnxruntime import OrtValue

        return {
            name: OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype))
            for name, (dtype, shape) in self.empties.items()
        }

    def feed(self, tokens: Sequence[int], start: int, cache: Cache) -> dict[str, Any]:
        """The inputs for consecutive tokens, the first at position ``start``, batch 1."""
        from onnxruntime import OrtValue

        end = start + len(tokens)
        arrays = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(start, end, dtype=np.int64)[None],
        }
        given = {
            name: OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items() if name in self.inputs
        }
        return {**given, **cache}

    def run(self, feed: Mapping[str, Any]) -> tuple[NDArray[np.float32], Cache]:
        """Logits ``[tokens, vocabulary]`` and the cache that holds these tokens too."""
        try:
            logits, *presents = self.session.run_with_ort_values(["logits", *self.presents.values()], feed)
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise ValidationError(f"cannot run it: {_line(error)}") from error
        return logits.numpy()[0], dict(zip(self.presents, presents, strict=True))


def open_decoder(path: Path, model: bytes, provider: str, accuracy_level: int | None) -> Decoder:
    """Load ``model``, whose data lies beside ``path``, with every MatMulNBits at ``accuracy_level`` if given.

    Raises ``ValidationError`` if onnxruntime cannot load it, if the provider does not start (onnxruntime
    itself would go on with the CPU), or if inputs and outputs are not those of a decoder with a cache.
    """
    import onnxruntime

    threads = processors()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry(_FOLDER, str(path.parent))
    if accuracy_level is not None:
        model = with_accuracy_level(model, accuracy_level)
    wanted = find_provider(provider)
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[wanted])
    except Exception as error:  # as above
        raise ValidationError(f"cannot load it: {_line(error)}") from error
    check_started(wanted, session.get_providers())
    session.disable_fallback()
    presents, empties = _caches(session)
    return Decoder(session, frozenset(one.name for one in session.get_inputs()), presents, empties, threads)


def check_started(wanted: str, running: Sequence[str]) -> None:
    """Raise ``ValidationError`` unless the provider ``wanted`` is among those of a session."""
    if wanted not in running:
        found = ", ".join(short_name(name) for name in running) or "none"
        raise ValidationError(
            f"provider {short_name(wanted)} does not start on this machine (only: {found});"
            " its libraries or its device are missing, or choose another --provider"
        )


def _caches(session: Any) -> tuple[dict[str, str], dict[str, tuple[Any, tuple[int, ...]]]]:
    """Outputs and empty arrays by input of the cache; heads and their sizes differ between layers."""
    outputs = {one.name for one in session.get_outputs()}
    known = {"input_ids", "attention_mask", "position_ids"}
    inputs = [one for one in session.get_inputs() if one.name not in known]
    presents = {one.name: one.name.replace(_PAST, _PRESENT, 1) for one in inputs}
    if missing := sorted({"logits", *presents.values()} - outputs):
        raise ValidationError(f"has no output {missing[0]}, which a decoder with a cache has")
    empties: dict[str, tuple[Any, tuple[int, ...]]] = {}
    for one in inputs:
        shape = one.shape
        fits = one.name.startswith(_PAST) and len(shape) == 4 and one.type in _TYPES
        if not fits or not all(isinstance(shape[axis], int) for axis in (1, 3)):
            raise ValidationError(
                f"input {one.name} is {one.type} {shape}; a cache is float [batch, heads, past, head size]"
            )
        empties[one.name] = (_TYPES[one.type], (1, shape[1], 0, shape[3]))
    return presents, empties


def _line(error: Exception) -> str:
    """The first line of a library's message, without its numbers and the directories of any machine."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return without_directories(_PREAMBLE.sub("", lines[0])).rstrip(".")
