"""The child process that exports graphs; it answers with their file names by model type."""

from __future__ import annotations

import gc
import itertools
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from converter.errors import TargetError
from converter.system.child import serve
from converter.system.progress import StageProgress
from targets.litert.export.request import STEPS
from targets.litert.export.skeleton import read_skeleton
from targets.litert.export.workarounds import CappedHead, left_out, small_samples

with left_out():
    from litert_torch.generative.export_hf.core import exportable_module
import torch
from litert_torch._convert import litert_converter
from litert_torch._convert.signature import Signature
from litert_torch.generative.export_hf.core.external_emb import exportable_module as external
from litert_torch.generative.export_hf.core.mu import mu_pass_lib
from litert_torch.generative.export_hf.model_ext import patches
from litert_torch.model import LiteRTModel
from torch.fx import config as fx_config
from torch.fx._lazy_graph_module import _use_lazy_graph_module

from targets.litert.export.model import ATTENTION, TextModel, build
from targets.litert.export.programs import Programs
from targets.litert.family import LitertFamily, litert_family
from targets.litert.sections import EMBEDDER, PER_LAYER_EMBEDDER, PREFILL_DECODE

#: A signature: its name, the module, and sample inputs.
_Signature = tuple[str, Any, Any]


def export(request: dict[str, Any], step: Callable[[], None]) -> dict[str, str]:
    """Write the graphs that a request asks for; names of files by model type."""
    checkpoint = read_skeleton(request)
    directory = Path(request["directory"])
    text = build(checkpoint)
    text.stand_ins.lower()
    family = litert_family(checkpoint.architecture)
    step()
    options = exportable_module.ExportableModuleConfig(
        model=request["checkpoint"],
        output_dir=str(directory),
        work_dir=str(directory),
        prefill_lengths=request["prefill_lengths"],
        cache_length=request["context_length"],
        # LiteRT-LM reads the cache of a prefill alone; layers that only the logits need are left out
        prefill_logits=False,
        externalize_embedder=request["externalize_embedder"],
        quantization_recipe=None,
    )
    files = {}
    with patches.patch_model(text.model, family.extension, options):
        text.model.set_attn_implementation(ATTENTION)
        opened: set[str] = set()
        for kind, signatures in _graphs(text, family, options).items():
            files[kind] = f"{kind}.graph.tflite"
            opened |= _write(signatures, text, directory / files[kind], step)
        lost = text.stand_ins.shapes.keys() - opened
    if lost:
        raise TargetError(f"the converter lost {min(lost)} ({len(lost)} of its kind)")
    return files


def _graphs(text: TextModel, family: LitertFamily, options: Any) -> dict[str, list[_Signature]]:
    if not options.externalize_embedder:
        classes = (
            exportable_module.LiteRTExportableModuleForDecoderOnlyLMPrefill,
            exportable_module.LiteRTExportableModuleForDecoderOnlyLMGenerate,
        )
        return {PREFILL_DECODE: _decoder(classes, text.model, text.config, options)}
    per_layer = None
    if getattr(text.config, "hidden_size_per_layer_input", 0) and family.per_layer_modules is not None:
        per_layer = family.per_layer_modules()
    library, model = (external, text.model) if per_layer is None else (per_layer, _multimodal(text))
    classes = (
        library.LiteRTExportableModuleForDecoderOnlyLMPrefillExternalEmbedder,
        library.LiteRTExportableModuleForDecoderOnlyLMGenerateExternalEmbedder,
    )
    graphs = {PREFILL_DECODE: _decoder(classes, model, text.config, options)}
    embedder = external.LiteRTExportableModuleForEmbedder(text.model.get_input_embeddings())
    graphs[EMBEDDER] = _embedder(embedder, text.config, options)
    if per_layer is not None:
        module = per_layer.LiteRTExportableModuleForPerLayerEmbedder(model)
        graphs[PER_LAYER_EMBEDDER] = _embedder(module, text.config, options)
    return graphs


def _decoder(classes: Iterable[Any], model: Any, config: Any, options: Any) -> list[_Signature]:
    signatures = []
    for kind in classes:
        module = kind(model, options, None)
        with small_samples():
            inputs = module.get_sample_inputs(config)
        signatures += [(name, module, sample) for name, (sample, _) in inputs.items()]
    return signatures


def _embedder(module: Any, config: Any, options: Any) -> list[_Signature]:
    inputs = module.get_sample_inputs(config, options)
    return [(name, module, sample) for name, (sample, _) in inputs.items()]


def _multimodal(text: TextModel) -> Any:
    """What litert-torch's modules for per-layer embeddings use of a multimodal model."""
    shell = torch.nn.Module()
    shell.model = torch.nn.Module()
    shell.model.language_model = text.model.model
    shell.lm_head = CappedHead(text.model.lm_head, text.config.final_logit_softcapping)
    shell.config = types.SimpleNamespace(text_config=text.config)
    return shell


def _write(signatures: list[_Signature], text: TextModel, path: Path, step: Callable[[], None]) -> set[str]:
    """Convert and write one graph; the names of the weights that it has as inputs."""
    wanted = [Signature(name, module.eval(), None, sample) for name, module, sample in signatures]
    # Each pass would have its whole graph written out as Python and compiled, and hardly one is ever run.
    with _use_lazy_graph_module(True):
        exporter = litert_converter.exported_programs_to_flatbuffer(Programs(wanted), wanted)
    step()
    converted = mu_pass_lib.update_model(LiteRTModel(exporter))
    opened = text.stand_ins.open(converted)
    step()
    converted.export(str(path))
    step()
    return set().union(*opened.values())


def serve_export(request: dict[str, Any], progress: StageProgress) -> dict[str, str]:
    """Answer one request."""
    total = 1 + STEPS * (3 if request["externalize_embedder"] else 1)
    steps = itertools.count(1)
    # Each operator would get the trace of the calls that made it, a twelfth of the time, which nothing reads.
    fx_config.do_not_emit_stack_traces = True
    # what was imported stays: garbage is sought, and sooner, among the rest
    gc.collect()
    gc.freeze()
    return export(request, lambda: progress(next(steps), total))


if __name__ == "__main__":
    serve(serve_export)
