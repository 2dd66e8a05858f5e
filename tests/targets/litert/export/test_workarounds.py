"""Every workaround is still needed with the installed versions; a failure here says that one can go.

What they change lasts for a process, so what happens with and without them is seen in processes of their own.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("litert_torch")
import torch
import transformers

from targets.litert.export.workarounds import small_samples, text_configuration
from targets.litert.gemma import GEMMA4

#: Prints, as its last line, what litert-torch does before and after each workaround.
OBSERVER = """
import inspect, json, sys
import torch, transformers
from targets.litert.export.workarounds import barrier, left_out, text_configuration
from targets.litert.gemma import GEMMA4, allow_experts
with left_out():
    import litert_torch
from litert_torch.backend.optimization_barrier import optimization_barrier
from litert_torch.generative.export_hf.core import weights_loader
from litert_torch.generative.export_hf.model_ext import patches
from litert_torch.generative.export_hf.model_ext.gemma4 import exportable_module
from litert_torch.generative.export_hf.model_ext.gemma4_unified import patch

seen = {}

def attempt(label, action):
    try:
        seen[label] = action()
    except Exception as error:
        seen[label] = f"{type(error).__name__}: {error}"

def with_experts():
    config = text_configuration(transformers.AutoConfig.from_pretrained(sys.argv[1]), GEMMA4)
    config._attn_implementation = "lrt_transposed_attention"
    with patches.get_patch_context("gemma4"), weights_loader.init_params_on_meta():
        model = transformers.AutoModelForCausalLM.from_config(config)
    return type(model.model.unique_layer_types).__name__

attempt("experts before", with_experts)
allow_experts()
attempt("experts after", with_experts)

class Doubled(torch.nn.Module):
    def __init__(self, behind):
        super().__init__()
        self.behind = behind

    def forward(self, x):
        return self.behind(x) * 2

def lowered(behind):
    litert_torch.convert(Doubled(behind).eval(), (torch.ones(1, 4),))
    return "lowered"

attempt("barrier before", lambda: lowered(optimization_barrier))
attempt("barrier after", lambda: lowered(barrier))
seen["patched models"] = sorted(patches._CONTEXT_REGISTRY)
source = inspect.getsource(exportable_module)
seen["head, cap"] = ["lm_head(" in source, "softcap" in source]
print()
print(json.dumps(seen))
"""
#: Prints, as its last line, the modules that an export's imports bring.
IMPORTER = """
import contextlib, json, sys
from targets.litert.export.workarounds import left_out
with left_out() if sys.argv[1:] == ["left out"] else contextlib.nullcontext():
    from litert_torch.generative.export_hf.core import exportable_module
from litert_torch.generative.export_hf.model_ext.gemma4 import patch
from transformers.models.gemma4 import modeling_gemma4
print()
print(json.dumps(list(sys.modules)))
"""
#: The quantiser, another model's extension, and what only losses of object detection want.
UNUSED = (
    "ai_edge_quantizer",
    "litert_torch.generative.export_hf.model_ext.whisper",
    "scipy.optimize",
)


def last_line(*arguments):
    done = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def imported():
    return last_line(IMPORTER), last_line(IMPORTER, "left out")


@pytest.fixture(scope="module")
def seen(checkpoint_factory):
    return last_line(OBSERVER, str(checkpoint_factory("26b-a4b")))


@pytest.mark.parametrize("unused", UNUSED)
def test_what_no_export_uses_is_imported_unless_it_is_left_out(unused, imported):
    before, after = imported
    assert unused in before
    assert unused not in after


def test_experts_are_refused(seen):
    assert "does not support setting experts implementation" in seen["experts before"]
    assert "Error" not in seen["experts after"]


def test_a_barrier_of_one_tensor_is_not_lowered(seen):
    assert "is not subscriptable" in seen["barrier before"]
    assert seen["barrier after"] == "lowered"


def test_the_order_of_operators_is_that_of_a_set(seen):
    """Of strings, whose hashes differ between processes without a fixed seed."""
    assert seen["experts after"] == "set"


def test_the_unified_text_model_is_unknown_to_the_exporter(seen, checkpoint_factory):
    config = transformers.AutoConfig.from_pretrained(checkpoint_factory("12b"))
    assert config.get_text_config().model_type == "gemma4_unified_text"
    assert "gemma4_text" in seen["patched models"]
    assert "gemma4_unified_text" not in seen["patched models"]
    assert text_configuration(config, GEMMA4).model_type == "gemma4_text"


@pytest.mark.parametrize("layout", ["hub", "transformers"])
def test_heads_that_differ_may_not_be_read_as_one(layout, checkpoint_factory):
    config = transformers.AutoConfig.from_pretrained(checkpoint_factory("26b-a4b", layout=layout))
    with pytest.raises(Exception, match="num_key_value_heads' is a per-layer attribute"):
        _ = config.get_text_config().num_key_value_heads
    assert text_configuration(config, GEMMA4).num_key_value_heads == 2


def test_the_decoder_of_per_layer_embeddings_forgets_the_cap(seen):
    assert seen["head, cap"] == [True, False]


def test_caches_and_masks_of_sample_inputs_would_have_their_whole_size():
    package = Path(importlib.util.find_spec("litert_torch").origin).parent
    source = package / "generative" / "export_hf" / "core" / "cache.py"
    assert "torch.zeros(k_cache_shape" in source.read_text()
    assert "(1, 1, prefill_length, cache_length)" in source.with_name("exportable_module.py").read_text()
    shape = (1, 2, 4096, 8)
    with small_samples():
        cache, other = torch.zeros(shape, dtype=torch.float32), torch.zeros(3)
        mask = torch.ones(shape)
    assert (tuple(cache.shape), cache.untyped_storage().nbytes()) == (shape, 4)
    assert (tuple(mask.shape), mask.untyped_storage().nbytes()) == (shape, 4)
    assert bool((mask == 1).all())
    assert other.untyped_storage().nbytes() == 12
    assert torch.zeros(shape).untyped_storage().nbytes() == 4 * 2 * 4096 * 8
