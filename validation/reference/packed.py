"""What ``transformers`` leaves open of checkpoints with packed codes (``quant_method: gemma``, 5.23).

It reads packed weights as a whole alone, not as they are needed. It loads no embedding with several scales in
a row, and none that a head is tied to. Scales of activations that a checkpoint does not have are left as what
lay in memory. For the child process that holds ``transformers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from converter.errors import ValidationError
from converter.filenames import INDEX, WEIGHTS
from converter.system.amounts import amount
from converter.system.untrusted import read_object

#: Parameters of modules, as the library has them.
_GRIDS: Final = ("input_activation_scale", "output_activation_scale")
_TABLE_CODES: Final = "embedding_quantized"
_TABLE_SCALE: Final = "embedding_scale"
_HEAD: Final = "lm_head"
_KEPT: Final = "modules_to_not_convert"


def is_packed(config: Any) -> bool:
    """Whether a configuration says that weights are packed."""
    return getattr(config, "quantization_config", None) is not None


def check_room(directory: Path, memory: int) -> None:
    """Raise ``ValidationError`` if the weights in ``directory`` take more than so many bytes of memory."""
    needed = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    if needed > memory:
        raise ValidationError(
            f"transformers reads packed weights as a whole: they take {amount(needed)} of memory, "
            f"{amount(memory)} may be taken (--max-memory)"
        )


def untie(config: Any, directory: Path) -> None:
    """Have a head be a module of its own. One that the checkpoint in ``directory`` does not have is not
    packed: ``complete`` fills it."""
    for one in (config, config.get_text_config()):
        one.tie_word_embeddings = False
    if _tensor(directory, f"{_HEAD}.weight") is None:
        section = config.quantization_config
        kept = [*(section.get(_KEPT) or ()), _HEAD]
        config.quantization_config = {**section, _KEPT: kept}


def complete(
    model: Any, info: Mapping[str, Any], directory: Path, *, grids: bool, untied: bool
) -> dict[str, set[Any]]:
    """Give a loaded model what the library did not, and what is still wrong of ``info``, which it told.

    Scales of activations become zero, which rounds nothing: without ``grids`` all of them, with them those
    that the checkpoint does not have. Scales of an embedding are taken from the checkpoint's file in
    ``directory`` where the library expected another number. An ``untied`` model whose head the checkpoint
    does not have gets the numbers of its embedding for one.
    """
    import torch

    missing = {str(name) for name in info.get("missing_keys", ())}
    mismatched = {one if isinstance(one, str) else tuple(one) for one in info.get("mismatched_keys", ())}
    for name in [name for name, _ in model.named_parameters() if name.endswith(_GRIDS)]:
        if not grids or name in missing:
            _give(model, name, torch.zeros(()))
    missing = {name for name in missing if not name.endswith(_GRIDS)}
    for one in sorted(mismatched, key=str):
        name = one if isinstance(one, str) else str(one[0])
        if name.endswith(f".{_TABLE_SCALE}") and _fill(model, name, directory):
            mismatched.discard(one)
    if untied and f"{_HEAD}.weight" in missing:
        _copy_embedding(model, directory)
        missing = {name for name in missing if not name.startswith(f"{_HEAD}.")}
    return {**info, "missing_keys": missing, "mismatched_keys": mismatched}


def round_to(model: Any, scales: Mapping[str, tuple[list[float], list[float]]]) -> None:
    """Have modules round what they take and give to static ``scales``, as those of packed weights do: one
    each, or one for each channel, 0 for none. Raises ``ValidationError`` for a module that there is not."""
    import torch
    from transformers.integrations.gemma_quant import apply_srq

    modules = dict(model.named_modules())
    for name, pair in scales.items():
        if name not in modules:
            raise ValidationError(f"transformers has no module {name} that could round to static grids")
        taken, given = (torch.tensor(one, dtype=torch.float32) for one in pair)
        modules[name].register_forward_pre_hook(
            lambda module, values, scale=taken: (apply_srq(values[0], scale), *values[1:])
        )
        modules[name].register_forward_hook(
            lambda module, values, result, scale=given: apply_srq(result, scale)
        )


def _fill(model: Any, name: str, directory: Path) -> bool:
    """Give an embedding the scales that the checkpoint has, if they divide its rows."""
    module = model.get_submodule(name.rpartition(".")[0])
    scales = _tensor(directory, name)
    if scales is None or scales.ndim != 2 or module.embedding_dim % scales.shape[1]:
        return False
    _give(model, name, scales)
    return True


def _give(model: Any, name: str, value: Any) -> None:
    """Put a tensor in the place of a parameter."""
    import torch

    place, _, last = name.rpartition(".")
    setattr(model.get_submodule(place), last, torch.nn.Parameter(value, requires_grad=False))


def _copy_embedding(model: Any, directory: Path) -> None:
    """Give the head the embedding's numbers, codes times scales in float32."""
    import torch

    embedding = model.get_input_embeddings()
    (place,) = (name for name, module in model.named_modules() if module is embedding)
    codes, scales = (_tensor(directory, f"{place}.{name}") for name in (_TABLE_CODES, _TABLE_SCALE))
    table = embedding._dequantize_weights(codes, scales)
    head = torch.nn.Linear(table.shape[1], table.shape[0], bias=False, device="meta")
    head.weight = torch.nn.Parameter(table, requires_grad=False)
    model.set_submodule(_HEAD, head)


def _tensor(directory: Path, name: str) -> Any:
    """A tensor of the checkpoint, ``None`` if its files have none of that name."""
    from safetensors import safe_open

    file: object = WEIGHTS
    if not (directory / WEIGHTS).exists():
        listed = read_object(directory / INDEX).get("weight_map")
        file = listed.get(name) if isinstance(listed, Mapping) else None
    if not isinstance(file, str):
        return None
    with safe_open(directory / file, framework="pt") as opened:
        return opened.get_tensor(name) if name in opened.keys() else None  # noqa: SIM118
