"""Child process of ``onnxruntime``: an excerpt of an ONNX model, or how large it will be.

The graph may come from a stranger, and protobuf takes many times its size, so that it is taken apart here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint.excerpt import Excerpt
from converter.system.child import serve
from converter.system.progress import StageProgress
from converter.system.untrusted import read_bytes
from targets.onnx.accuracy import parse
from targets.onnx.excerpt import DATA, copy_data, cut, move_data, stretches
from targets.onnx.protobuf import GRAPH_BYTES


def write_excerpt(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    """Write the excerpt of ``artifact`` that the fields of ``Excerpt`` tell to ``output``, its data beside
    it. Nothing is written if ``output`` is null.

    Answer: ``bytes`` of both.
    """
    artifact = Path(request["artifact"])
    excerpt = Excerpt(tuple(request["layers"]), request["of"], request["own"], tuple(request["attention"]))
    model = parse(read_bytes(artifact, GRAPH_BYTES))
    cut(model, excerpt)
    places = stretches(model)
    move_data(model, places)
    data: bytes = model.SerializeToString(deterministic=True)
    total = sum(stretch.length for stretch in places)
    if request["output"] is not None:
        output = Path(request["output"])
        done = 0
        with (output.parent / DATA).open("xb") as file:
            for count in copy_data(artifact.parent, places, file):
                done += count
                progress(done, total)
        output.write_bytes(data)
    end = max((place + stretch.length for stretch, place in places.items()), default=0)
    return {"bytes": end + len(data)}


if __name__ == "__main__":
    serve(write_excerpt)
