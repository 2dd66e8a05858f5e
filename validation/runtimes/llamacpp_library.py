"""llama.cpp's shared library: which one is used, and our own declarations of what is called in it.

The wheel ``xllamacpp`` needs no compiler. Its Python interface gives no logits, but its one shared library
exports llama.cpp's C interface. That has no stable layout: fields come and go between builds, and a
structure that is declared wrongly is not noticed. So a build is used only if its version and its bytes stand
in ``TESTED``, and only if its default parameters, read by these declarations, are the recorded ones.

Where no such build is installed, llama-cpp-python serves, which is compiled on the machine and declares its
own library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar, Final

from converter.errors import UsageError, ValidationError
from converter.system.digests import sha256

#: SHA-256 of the shared library of every version of xllamacpp that this module's declarations were tested
#: with: the wheel for Linux on x86-64. Another wheel belongs here once the tests have run with it.
TESTED: Final[Mapping[str, str]] = MappingProxyType(
    {"2026.10.11549": "78dcbbfcc861ee3377554325dc12864829a76ec3de6f1882886d4a82a2def7f5"}
)
#: Names under which the library may be imported: one of them must be there.
MODULES: Final = ("xllamacpp", "llama_cpp")
_SHARED_LIBRARY: Final = "xllamacpp.abi3.so"


class ModelParams(ctypes.Structure):
    """``llama_model_params`` of the tested builds."""

    _fields_: ClassVar = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]


class ContextParams(ctypes.Structure):
    """``llama_context_params`` of the tested builds.

    ``since_0_6`` are 8 bytes that llama.cpp 0.5 (llama-cpp-python 0.3.36) has not; zero by default. Tried:
    an abort callback is called from where it stands here, not from 8 bytes before."""

    _fields_: ClassVar = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("since_0_6", c_void_p),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class Batch(ctypes.Structure):
    """``llama_batch``: tokens with their positions and sequences, and which of them get logits."""

    _fields_: ClassVar = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


#: Default values of the tested builds that are not zero; all others are.
MODEL_DEFAULTS: Final[Mapping[str, object]] = MappingProxyType(
    {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "use_extra_bufts": True}
)
CONTEXT_DEFAULTS: Final[Mapping[str, object]] = MappingProxyType(
    {
        "n_ctx": 512,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_seq_max": 1,
        "n_outputs_max_per_seq": 1,
        "n_threads": 4,
        "n_threads_batch": 4,
        "rope_scaling_type": -1,
        "pooling_type": -1,
        "attention_type": -1,
        "flash_attn_type": -1,
        "yarn_ext_factor": -1.0,
        "yarn_attn_factor": -1.0,
        "yarn_beta_fast": -1.0,
        "yarn_beta_slow": -1.0,
        "defrag_thold": -1.0,
        "type_k": 1,
        "type_v": 1,
        "offload_kqv": True,
        "no_perf": True,
        "op_offload": True,
        "swa_full": True,
    }
)
#: Bytes behind a structure into which one that has grown may be written without harm.
_SPARE: Final = 256
_LOG = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
_TOKENS = POINTER(c_int32)
#: Result and arguments of every function that is called.
_FUNCTIONS: Final[Mapping[str, tuple[Any, tuple[Any, ...]]]] = MappingProxyType(
    {
        "ggml_version": (c_char_p, ()),
        "llama_version": (c_char_p, ()),
        "llama_backend_init": (None, ()),
        "llama_log_set": (None, (_LOG, c_void_p)),
        "llama_model_load_from_file": (c_void_p, (c_char_p, ModelParams)),
        "llama_model_free": (None, (c_void_p,)),
        "llama_model_get_vocab": (c_void_p, (c_void_p,)),
        "llama_model_n_ctx_train": (c_int32, (c_void_p,)),
        "llama_model_meta_count": (c_int32, (c_void_p,)),
        "llama_model_meta_key_by_index": (c_int32, (c_void_p, c_int32, c_char_p, c_size_t)),
        "llama_model_meta_val_str_by_index": (c_int32, (c_void_p, c_int32, c_char_p, c_size_t)),
        "llama_init_from_model": (c_void_p, (c_void_p, ContextParams)),
        "llama_free": (None, (c_void_p,)),
        "llama_get_memory": (c_void_p, (c_void_p,)),
        "llama_memory_clear": (None, (c_void_p, c_bool)),
        "llama_batch_init": (Batch, (c_int32, c_int32, c_int32)),
        "llama_batch_free": (None, (Batch,)),
        "llama_decode": (c_int32, (c_void_p, Batch)),
        "llama_get_logits": (POINTER(c_float), (c_void_p,)),
        "llama_model_chat_template": (c_char_p, (c_void_p, c_char_p)),
        "llama_vocab_bos": (c_int32, (c_void_p,)),
        "llama_vocab_eos": (c_int32, (c_void_p,)),
        "llama_vocab_get_text": (c_char_p, (c_void_p, c_int32)),
        "llama_vocab_n_tokens": (c_int32, (c_void_p,)),
        "llama_vocab_is_eog": (c_bool, (c_void_p, c_int32)),
        "llama_vocab_get_suppress_tokens": (_TOKENS, (c_void_p, _TOKENS)),
        "llama_tokenize": (c_int32, (c_void_p, c_char_p, c_int32, _TOKENS, c_int32, c_bool, c_bool)),
        "llama_token_to_piece": (c_int32, (c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool)),
    }
)


@dataclass(frozen=True, slots=True)
class Installed:
    """A library that may be used."""

    #: The package that brought it.
    package: str
    #: The package's.
    version: str
    #: The file, ``None`` where the package opens it itself.
    path: Path | None


@dataclass(frozen=True, slots=True)
class Library:
    """An open library."""

    #: llama.cpp's functions and constants under their C names, with structures to fill in.
    functions: Any
    #: llama.cpp's own, then the package's.
    version: str


def find_library() -> Installed:
    """The library that serves here: a tested xllamacpp, else llama-cpp-python. Neither is imported.

    Raises ``UsageError``, which names the tested versions, where there is neither.
    """
    reason = "llama.cpp is not installed"
    if (path := _shared_library()) is not None:
        found = _version_of("xllamacpp")
        digest = _digest(path, _state(path)) if found in TESTED else ""
        if digest and digest == TESTED[found]:
            return Installed("xllamacpp", found, path)
        reason = f"xllamacpp {found} is not a version that was tested"
        if digest:
            reason = f"{path}: not the tested library of xllamacpp {found} (its SHA-256 is {digest})"
    if find_spec("llama_cpp") is not None:
        return Installed("llama-cpp-python", _version_of("llama-cpp-python"), None)
    raise UsageError(
        f"{reason}; tested: xllamacpp {', '.join(TESTED)} (Linux, x86-64):"
        f" pip install --force-reinstall --no-deps xllamacpp=={max(TESTED)}; or pip install llama-cpp-python"
    )


@lru_cache(maxsize=1)
def _digest(path: Path, state: tuple[int, int, int]) -> str:
    """SHA-256 of a file of 100 MB, for which a proof asks several times, in a ``state``."""
    return sha256(path)


def _state(path: Path) -> tuple[int, int, int]:
    """What is another once a file was written to or replaced."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def open_library() -> Library:
    """Load the library that ``find_library`` names. Raises what that raises, and ``ValidationError`` for a
    library whose default parameters are not the recorded ones."""
    installed = find_library()
    package = f"{installed.package} {installed.version}"
    if installed.path is None:
        return _of_llama_cpp_python(package)
    library = ctypes.CDLL(str(installed.path))
    functions = SimpleNamespace(llama_log_callback=_LOG, LLAMA_FLASH_ATTN_TYPE_DISABLED=0)
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, list(arguments)
        setattr(functions, name, function)
    model = check_defaults(library.llama_model_default_params, ModelParams, MODEL_DEFAULTS)
    context = check_defaults(library.llama_context_default_params, ContextParams, CONTEXT_DEFAULTS)
    functions.llama_model_default_params = lambda: ModelParams.from_buffer_copy(model)
    functions.llama_context_default_params = lambda: ContextParams.from_buffer_copy(context)
    own = f"{functions.llama_version().decode()} (ggml {functions.ggml_version().decode()})"
    return Library(functions, f"{own}, {package}")


def check_defaults(
    function: Any, structure: type[ctypes.Structure], recorded: Mapping[str, object]
) -> ctypes.Structure:
    """What ``function`` returns, if it is a ``structure`` with the values ``recorded``, and zero where none
    is. Raises ``ValidationError`` that names the first field which has another value: a structure whose
    layout is not the declared one shows in it."""
    spacious = type(
        "Spacious", (ctypes.Structure,), {"_fields_": [("it", structure), ("end", _SPARE * c_int8)]}
    )
    function.restype, function.argtypes = spacious, []
    returned = function()
    for name, *_ in structure._fields_:
        value = getattr(returned.it, name)
        if value != recorded.get(name, 0) and not (value is None and name not in recorded):
            raise ValidationError(
                f"llama.cpp's {structure.__name__}.{name} is {value!r} by default, not"
                f" {recorded.get(name, 0)!r}: the library is not laid out as declared;"
                f" pip install --force-reinstall --no-deps xllamacpp=={max(TESTED)}"
            )
    it: ctypes.Structure = returned.it
    return it


def _of_llama_cpp_python(package: str) -> Library:
    import llama_cpp

    own = llama_cpp.llama_version().decode() if hasattr(llama_cpp, "llama_version") else ""
    library = ctypes.CDLL(str(next(Path(llama_cpp.__file__).parent.glob("lib/*ggml-base*"))))
    library.ggml_commit.restype = c_char_p
    return Library(llama_cpp, f"{own} ({library.ggml_commit().decode()}), {package}".strip())


def _shared_library() -> Path | None:
    """xllamacpp's shared library, found without importing the package, which loads it."""
    spec = find_spec("xllamacpp")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (path := Path(place) / _SHARED_LIBRARY).is_file():
            return path
    return None


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
