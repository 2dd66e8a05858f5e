"""What a conversion would do: its plan, the files, what it takes and what it downloads. Writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from converter.filenames import MANIFEST, REPORTS
from converter.names import Source, resolve
from converter.pipeline.conversion import usable_targets
from converter.pipeline.destination import check_destination, check_room
from converter.pipeline.earlier import Earlier, check_staying
from converter.pipeline.opening import Model, described_place, local_place, open_place, opening
from converter.pipeline.recording import stored_beside_text
from converter.pipeline.running import Conversion, Running
from converter.system.digests import Digests
from converter.system.memory import free_memory
from converter.system.progress import Progress, begin, no_progress
from targets.estimates import MACHINE, estimate, file_sizes
from targets.target import (
    Plan,
    Target,
    check_known,
    planning,
)


def preview(
    conversion: Conversion, progress: Progress = no_progress, warn: Callable[[str], None] = print
) -> dict[str, Any]:
    """What ``conversion`` would do, as ``--dry-run --json`` prints it.

    Of a repository only the description is downloaded. Where its weights are not at hand they are taken for
    what training leaves, and ``weights_read`` is false. Raises a ``QatconvertError`` where the conversion
    would before it writes: for options, for a model that cannot be held, for what lies in the output.
    """
    names = list(dict.fromkeys(conversion.targets))
    check_known(names)
    source, destination = resolve(conversion.model), conversion.destination
    begin(progress, opening(source))
    earlier = check_destination(destination, names, conversion.force)
    targets = usable_targets(names, conversion)
    model, download = _opened(source, conversion, targets, progress)
    if model.source.note:
        warn(model.source.note)
    with closing(Digests()) as digests, model.unchanged():
        run = Running(conversion, model, targets, destination, digests, None, progress, warn)
        plans = []
        for target in targets:
            begin(progress, planning(target))
            plans.append(target.plan(model.checkpoint, model.source.name, run.options, progress))
        check_room(run, plans)
        if earlier is not None and not download["bytes"]:
            digests.add(model.checkpoint.files)
            check_staying(earlier, names, model.checkpoint.source.entries(digests))
        return _told(run, plans, earlier, download)


def _opened(
    source: Source, conversion: Conversion, targets: Sequence[Target], progress: Progress
) -> tuple[Model, dict[str, int]]:
    """The model, and the bytes of weights that a conversion would download, ``of`` all that there are."""
    place = local_place(source)
    if place is not None:
        return open_place(place, progress), {"bytes": 0, "of": 0}
    from converter.checkpoint.opened import open_expected

    place, weights = described_place(source, conversion.offline, targets, conversion.options)
    told = {"bytes": weights.missing, "of": weights.total}
    if not weights.missing:
        return open_place(place, progress), told
    with place.watch.around():
        return Model(place, open_expected(place.path)), told


def _told(
    run: Running, plans: Sequence[Plan], earlier: Earlier | None, download: Mapping[str, int]
) -> dict[str, Any]:
    checkpoint, held = run.model.checkpoint, () if earlier is None else earlier.targets
    return {
        "schema": 1,
        "model": run.model.source.name,
        "source": run.model.described(),
        "parameters": checkpoint.parameters,
        "weights_read": not download["bytes"],
        "validated": run.request.validation is not None,
        "output": {
            "path": str(run.destination),
            "exists": run.destination.exists(),
            "replaces": [name for name in held if name in run.names],
            "keeps": [name for name in held if name not in run.names],
        },
        "download": dict(download),
        "estimated_for": MACHINE,
        "targets": {
            plan.target: _target(run, target, plan) for target, plan in zip(run.targets, plans, strict=True)
        },
        "files": [MANIFEST, *REPORTS],
        "weights": [
            {"name": weight.name, "shape": list(weight.shape), "matrix": len(weight.shape) > 1}
            for weight in checkpoint.weights.values()
        ],
        "left_out": checkpoint.parts_left_out(stored_beside_text(plans)),
    }


def _target(run: Running, target: Target, plan: Plan) -> dict[str, Any]:
    checkpoint, limit = run.model.checkpoint, (run.request.validation or {}).get("max_memory")
    expected = estimate(target, checkpoint, limit or free_memory())
    sizes = file_sizes(target, checkpoint, plan)
    return {
        **plan.as_dict(),
        "files": [{"path": path, "bytes": size, "exact": exact} for path, (size, exact) in sizes.items()],
        "estimate": None if expected is None else asdict(expected),
    }
