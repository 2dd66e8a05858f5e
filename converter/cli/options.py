"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from converter.errors import UsageError

Command = TypeVar("Command", bound=Callable[..., Any])
_MOST_GB = 1e9
#: Digits of a number of tokens: more than any model has.
_MOST_DIGITS = 12


class Gate(click.ParamType[tuple[str, float]]):
    """``NAME=LIMIT``, as in ``mean_kld=0.01``."""

    name = "NAME=LIMIT"

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, float]:
        """The gate's name and its limit."""
        if isinstance(value, tuple):
            return value
        from validation.limits import KNOWN

        name, _, limit = str(value).partition("=")
        try:
            number = float(limit)
        except ValueError:
            number = float("nan")
        if name not in KNOWN or not 0 <= number < float("inf"):
            self.fail(f"{value!r}: give one of {', '.join(KNOWN)} and a limit, as in mean_kld=0.01")
        return name, number


class OutputPath(click.Path):
    """A place to write to. An empty text, as an unset variable gives, does not mean the working directory."""

    def convert(
        self,
        value: str | os.PathLike[str],
        parameter: click.Parameter | None,
        context: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """The path."""
        if not os.fspath(value):
            self.fail("the path is empty", parameter, context)
        return super().convert(value, parameter, context)


off_lattice_option = click.option(
    "--off-lattice",
    type=click.Choice(["q8_0", "bf16", "f16", "q4_0"]),
    help="How to store matrices that lie on no 4-bit lattice.  [default: q8_0]",
)


def onnx_options(command: Command) -> Command:
    """What an ONNX artifact stores."""
    for option in (
        click.option(
            "--onnx-dtype",
            type=click.Choice(["float32", "float16"]),
            help="Type in which an ONNX model computes; float16 is for GPU providers.  [default: float32]",
        ),
        click.option(
            "--onnx-scales",
            type=click.Choice(["f32", "f16"]),
            help="Type of the scales in an ONNX model.  [default: f32, with --onnx-dtype float16 f16]",
        ),
    ):
        command = option(command)
    return command


class Lengths(click.ParamType[tuple[int, ...]]):
    """Numbers of tokens with commas between them, as in ``128,1024``."""

    name = "N,N..."

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, ...]:
        """The numbers."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isascii() and part.isdecimal() and len(part) < _MOST_DIGITS for part in parts):
            self.fail(f"{value!r}: give numbers of tokens, as in 128,1024")
        return tuple(map(int, parts))


def litert_options(command: Command) -> Command:
    """What a LiteRT bundle can do."""
    for option in reversed(
        (
            click.option(
                "--prefill-lengths",
                type=Lengths(),
                help="Numbers of tokens in which a LiteRT bundle reads prompts, as in 128,1024; each takes "
                "memory and time to export.  [default: 128]",
            ),
            click.option(
                "--context-length",
                type=int,
                metavar="N",
                help="Tokens that a LiteRT bundle's caches hold, prompt and answer together.  "
                "[default: 4096, or what the model was trained for]",
            ),
            click.option(
                "--externalize-embedder",
                is_flag=True,
                help="Put the embeddings of a LiteRT bundle into models of their own.",
            ),
            click.option(
                "--litert-activations",
                "activations",
                metavar="ROWS",
                help="Rows in which a LiteRT bundle's products take their input, each rounded by its own "
                "scale: 1, 2, layers (2, and 1 in the output head), or the projections that take 2, as in "
                "down_proj,v_proj. More are more accurate, fewer faster. Default: the fastest that passes "
                "the gates is kept.",
            ),
        )
    ):
        command = option(command)
    return command


#: What an option has an effect with: the target in which it shows, and ``VALIDATION`` where an artifact is
#: run. Every option of ``convert``, ``inspect`` and ``validate`` stands here; some always have an effect.
VALIDATION = "validation"
EFFECT: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("targets", "output", "force", "offline", "off_lattice", "validate"), ()),
    **dict.fromkeys(("model", "as_json", "quiet", "help", "foreign"), ()),
    "split_max_size": ("gguf",),
    "system": ("gguf",),
    "license_files": ("gguf",),
    "num_ctx": ("gguf",),
    "onnx_scales": ("onnx",),
    "onnx_dtype": ("onnx",),
    "accuracy_level": ("onnx",),
    "provider": ("onnx", VALIDATION),
    "prefill_lengths": ("litert",),
    "context_length": ("litert",),
    "externalize_embedder": ("litert",),
    "activations": ("litert",),
    "keep_tflite": ("litert",),
    "npu": ("litert",),
    "android_assets": ("litert",),
    "positions": (VALIDATION,),
    "text_file": (VALIDATION,),
    "reference_dtype": (VALIDATION,),
    "max_memory": (VALIDATION,),
    "gates": (VALIDATION,),
    "allow_unrun": (VALIDATION,),
    "baseline": (VALIDATION,),
    "same_weights": (VALIDATION,),
}


def check_effect(targets: Collection[str], validated: bool = True) -> None:
    """Raise ``UsageError`` for an option that was given to the running command and has no effect with these
    targets, or without a validation."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        given = "/".join((*parameter.opts, *parameter.secondary_opts))
        for needed in EFFECT.get(name, ()) if isinstance(parameter, click.Option) else ():
            if needed == VALIDATION and not validated:
                raise UsageError(f"{given} has no effect with --no-validate: leave out one of them")
            if needed != VALIDATION and needed not in targets:
                raise UsageError(
                    f"{given} has no effect without target {needed}: leave it out, or add the target"
                )


#: Options that go to the targets, by the name that these know them by.
_OF_TARGETS = (
    "off_lattice",
    "split_max_size",
    "onnx_scales",
    "onnx_dtype",
    "accuracy_level",
    "prefill_lengths",
    "context_length",
    "externalize_embedder",
    "activations",
    "keep_tflite",
    "npu",
    "android_assets",
    "system",
    "num_ctx",
)


def target_options(settings: dict[str, Any]) -> dict[str, object]:
    """Take the targets' options out of a command's ``settings``, without those that were not given."""
    options = {name: settings.pop(name, None) for name in _OF_TARGETS}
    licenses = [read_license(file) for file in settings.pop("license_files", ())]
    given = {**options, "npu": options["npu"] or None, "licenses": licenses or None}
    return {name: value for name, value in given.items() if value is not None and value is not False}


def modelfile_options(command: Command) -> Command:
    """What a Modelfile says beyond the model itself."""
    for option in (
        click.option("--num-ctx", type=click.IntRange(1), help="Context length in the Modelfile."),
        click.option(
            "--license",
            "license_files",
            multiple=True,
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="File with a licence text for the Modelfile. Repeatable.",
        ),
        click.option("--system", help="System prompt in the Modelfile."),
    ):
        command = option(command)
    return command


def read_license(path: Path) -> str:
    """The text of a licence; raises ``click.UsageError`` for a file that is no UTF-8 text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise click.UsageError(f"{path}: no UTF-8 text ({error})") from error


def validation_options(command: Command) -> Command:
    """Everything that says how an artifact is proven."""
    for option in reversed(
        (
            click.option(
                "--positions",
                type=click.IntRange(2),
                default=512,
                show_default=True,
                help="Token positions to compare.",
            ),
            click.option(
                "--text",
                "text_file",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="Evaluate on this UTF-8 text instead of the checkpoint's own or the built-in one.",
            ),
            click.option(
                "--reference-dtype",
                type=click.Choice(["float32", "bfloat16", "float16"]),
                default="float32",
                show_default=True,
                help="Type in which transformers computes the reference logits.",
            ),
            click.option(
                "--max-memory",
                type=click.FloatRange(0, min_open=True),
                metavar="GB",
                help="Memory that the reference model may use; beyond it, weights are read from disk. "
                "Default: what the machine has.",
            ),
            click.option(
                "--gate",
                "gates",
                type=Gate(),
                multiple=True,
                help="Set the limit of a gate: exact_fraction, mean_kld, same_top_p or another figure.",
            ),
            click.option(
                "--allow-unrun",
                "allow_unrun",
                multiple=True,
                type=click.Choice(
                    [
                        "graph_kld",
                        "same_as_built",
                        "engine_same_tokens",
                        "engine_same_prompts",
                        "engine_same_ends",
                        "mean_kld",
                        "same_top_p",
                        "decode_mean_kld",
                        "engine_gap",
                        "engine_mean_abs",
                    ]
                ),
                metavar="GATE",
                help="Go on without this gate where it cannot run, for want of room, memory, packages or of "
                "what its limit is relative to: graph_kld, same_as_built, engine_same_tokens, "
                "engine_same_prompts, engine_same_ends, mean_kld, same_top_p, decode_mean_kld, engine_gap or "
                "engine_mean_abs. The result is not fully proven then. Repeatable.",
            ),
            click.option(
                "--baseline",
                type=click.Choice(["naive-q4_0"]),
                help="Measure a naive requantisation of the same checkpoint beside it.",
            ),
            click.option(
                "--same-weights/--no-same-weights",
                default=True,
                show_default=True,
                help="Also measure the runtime against float32 logits of the artifact's own weights "
                "(4 bytes per parameter of temporary files).",
            ),
            click.option(
                "--provider",
                default="cpu",
                show_default=True,
                metavar="NAME",
                help="Execution provider of onnxruntime that runs an ONNX artifact: cpu, cuda, tensorrt, "
                "dml, coreml, openvino, qnn, webgpu, xnnpack or another that is installed.",
            ),
        )
    ):
        command = option(command)
    return command


def validation_settings(
    positions: int,
    text_file: Path | None,
    reference_dtype: str,
    max_memory: float | None,
    gates: tuple[tuple[str, float], ...],
    allow_unrun: tuple[str, ...],
    baseline: str | None,
    same_weights: bool,
    provider: str,
) -> dict[str, Any]:
    """The fields of ``validation.settings.Settings`` that these options stand for."""
    if max_memory is not None and not max_memory < _MOST_GB:
        raise click.BadParameter(f"{max_memory} is no amount of memory", param_hint="--max-memory")
    return {
        "positions": positions,
        "text": text_file,
        "reference_dtype": reference_dtype,
        "max_memory": None if max_memory is None else int(max_memory * 1e9),
        "gates": dict(gates),
        "allow_unrun": allow_unrun,
        "baseline": baseline,
        "same_weights": same_weights,
        "provider": provider,
    }
