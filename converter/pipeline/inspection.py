"""What a checkpoint is, tensor by tensor, and what each target would make of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from converter.checkpoint.architecture import Architecture
from converter.checkpoint.parts import TEXT
from converter.checkpoint.scheme import Survey, survey
from converter.checkpoint.weight import Weight
from converter.errors import ExtensionError, TargetError
from converter.pipeline.opening import Model
from converter.system.progress import Progress, begin, counted, no_progress, stage_of
from targets.accelerators import accelerators
from targets.target import Plan, PlannedTensor, check_options, find_target, known_targets, planning


def inspect(
    model: Model,
    targets: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Architecture, parameters, lattice of every weight, and the storage plan of each target. Where no target
    is named, all known ones are planned, and the reason stands in place of a plan where one cannot hold the
    model.

    Reads every block of every lattice weight and writes nothing. Compilers of other processors are asked for
    targets that are named. Raises ``CheckpointError``,
    ``TargetError``, or ``UsageError`` for options that none of the targets takes.
    """
    checkpoint = model.checkpoint
    planned, plans, refused = [], [], {}
    for name in targets or known_targets():
        try:
            planned.append(find_target(name))
        except ExtensionError as error:
            if targets:
                raise
            refused[name] = str(error)
    check_options(planned, options or {})
    with model.unchanged():
        for target in planned:
            begin(progress, planning(target))
            try:
                plans.append(target.plan(checkpoint, model.source.name, options or {}, progress))
            except (ExtensionError, TargetError) as error:
                if targets:
                    raise
                refused[target.name] = str(error)
        surveys = _survey_all(list(checkpoint.weights.values()), progress)
    return {
        "schema": 1,
        "model": model.source.name,
        "source": model.described(),
        "architecture": _architecture(checkpoint.architecture),
        "parameters": sum(weight.size for weight in checkpoint.weights.values()),
        "parts": {part: asdict(size) for part, size in checkpoint.part_sizes.items()},
        "lattice": _totals(checkpoint.weights, surveys),
        "targets": {
            **{
                plan.target: {
                    **plan.as_dict(),
                    "blocks": _classes(plan, surveys),
                    **(_accelerators(plan) if targets else {}),
                }
                for plan in plans
            },
            **{name: {"error": reason} for name, reason in refused.items()},
        },
        "weights": [_weight(weight, surveys.get(name)) for name, weight in checkpoint.weights.items()],
        "left_out": [
            {
                "name": item.name,
                "shape": list(item.shape),
                "dtype": item.dtype,
                "bytes": item.bytes,
                "reason": item.reason,
                "part": item.part,
            }
            for item in checkpoint.left_out
            if not plans or not all(item.weight in plan.beside_text for plan in plans)
        ],
    }


def _accelerators(plan: Plan) -> dict[str, Any]:
    """The ``accelerators`` of a plan, under their key, where its target asks for some."""
    found = accelerators(find_target(plan.target), plan)
    return {} if found is None else {"accelerators": found}


def _survey_all(weights: list[Weight], progress: Progress) -> dict[str, Survey]:
    on_lattice = [weight for weight in weights if weight.lattice is not None]
    total = sum(weight.size for weight in on_lattice)
    advance = counted(stage_of(progress, "reading the lattice"), total)
    return {weight.name: survey(weight, advance) for weight in on_lattice}


def _architecture(found: Architecture) -> dict[str, Any]:
    kinds = [layer.attention for layer in found.layers]
    entry: dict[str, Any] = {
        "family": found.family,
        "model_type": found.model_type,
        "layers": f"{len(kinds)} ({kinds.count('sliding')} sliding, {kinds.count('full')} full attention)",
        "hidden_size": found.hidden,
        "vocabulary": found.vocabulary,
        "context": found.context,
        "sliding_window": found.sliding_window,
        "heads": _distinct(layer.heads for layer in found.layers),
        "kv_heads": _distinct(layer.kv_heads for layer in found.layers),
        "head_dim": _distinct(layer.head_dim for layer in found.layers),
        "feed_forward": _distinct(layer.feed_forward for layer in found.layers),
        "shared_kv_layers": sum(layer.kv_source is not None for layer in found.layers),
    }
    if found.experts:
        entry["experts"] = "{count}, {active} active, {feed_forward} wide".format(**asdict(found.experts))
    if found.per_layer_input:
        entry["per_layer_input"] = found.per_layer_input.size
    if found.final_softcap:
        entry["final_logit_softcapping"] = found.final_softcap
    return entry


def _distinct(values: Any) -> str:
    return ", ".join(map(str, dict.fromkeys(values)))


def _totals(weights: Mapping[str, Weight], surveys: Mapping[str, Survey]) -> dict[str, Any]:
    matrices = [weight for weight in weights.values() if len(weight.shape) > 1]
    values = sum(weight.size for weight in matrices)
    blocks = sum(found.blocks for found in surveys.values())
    return {
        "matrices": len(surveys),
        "of": len(matrices),
        "share": sum(weights[name].size for name in surveys) / values if values else 0.0,
        "blocks": blocks,
        "exact_fraction": sum(found.exact for found in surveys.values()) / blocks if blocks else 0.0,
    }


def _classes(plan: Plan, surveys: Mapping[str, Survey]) -> dict[str, int]:
    """Blocks of the lattice by the class that they will be of in the artifact. A weight that is stored twice
    counts once, as its first tensor stores it."""
    total = Counter({"exact": 0, "scale_not_representable": 0, "codes_not_held": 0, "off_lattice": 0})
    tensors = {tensor.weight: tensor for tensor in reversed(plan.of_part(TEXT))}
    for name, found in surveys.items():
        if name in tensors:
            total.update(_classes_of(tensors[name], found))
    return dict(total)


def _classes_of(tensor: PlannedTensor, found: Survey) -> dict[str, int]:
    """The classes of one weight's blocks. Of codes, those that need a float32 scale are exact where there is
    one. Numbers are exact or not by what the plan says of them."""
    if tensor.scales is None:
        if tensor.exact:
            return {"exact": found.blocks}
        return {"codes_not_held": found.blocks - found.off_lattice, "off_lattice": found.off_lattice}
    wide = tensor.scales == "F32"
    return {
        "exact": found.exact + (found.needs_f32_scale if wide else 0),
        "scale_not_representable": 0 if wide else found.needs_f32_scale,
        "off_lattice": found.off_lattice,
    }


def _weight(weight: Weight, found: Survey | None) -> dict[str, Any]:
    return {
        "name": weight.name,
        "source": weight.source,
        "shape": list(weight.shape),
        "dtype": weight.stored,
        "matrix": len(weight.shape) > 1,
        "lattice": asdict(weight.lattice) if weight.lattice else None,
        "scheme": found.scheme if found else None,
        "blocks": found.blocks if found else None,
        "exact_fraction": found.exact_fraction if found else None,
        "needs_f32_scale": found.needs_f32_scale if found else None,
        "off_lattice": found.off_lattice if found else None,
        "negative_scales": found.negative_scales if found else None,
    }
