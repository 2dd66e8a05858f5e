"""Every workaround is still needed with the installed versions; a failure here says that one can go.

What changes a process for good, or needs one without the workaround, runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("litert_torch")
import transformers

from targets.litert.workarounds import text_configuration

IMPORT = """
from targets.litert.workarounds import tensorflow_schema
with tensorflow_schema():
    from litert_torch.generative.export_hf.core import export_lib
"""


def run(code, **variables):
    """Exit status and output of Python code in a process of its own."""
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_the_exporter_imports_tensorflow():
    status, _, errors = run("from litert_torch.generative.export_hf.core import export_lib")
    assert status
    assert "No module named 'tensorflow'" in errors


def test_tensorflow_is_gone_after_the_import():
    code = (
        "import sys, importlib.util as u; print(u.find_spec('tensorflow'), 'tensorflow.lite' in sys.modules)"
    )
    assert run(IMPORT + code)[:2] == (0, "None False\n")


EXPERTS = """
import sys, torch, transformers
from litert_torch.generative.export_hf.core import weights_loader, attention
from litert_torch.generative.export_hf.model_ext import patches
from targets.litert.workarounds import allow_experts, text_configuration
if "allow" in sys.argv:
    allow_experts()
config = text_configuration(transformers.AutoConfig.from_pretrained(sys.argv[1]))
config._attn_implementation = "lrt_transposed_attention"
with patches.get_patch_context("gemma4"), weights_loader.init_params_on_meta():
    transformers.AutoModelForCausalLM.from_config(config)
"""


def test_experts_are_refused(checkpoint_factory):
    path = checkpoint_factory("26b-a4b")
    refused = run(IMPORT + EXPERTS.replace("sys.argv[1]", repr(str(path))))
    assert refused[0]
    assert "does not support setting experts implementation" in refused[2]
    allowed = run(IMPORT + EXPERTS.replace("sys.argv[1]", repr(str(path))).replace("sys.argv", "['allow']"))
    assert allowed[0] == 0, allowed[2]


BARRIER = """
import torch, litert_torch
from litert_torch.backend.optimization_barrier import optimization_barrier
from targets.litert.workarounds import barrier

class Model(torch.nn.Module):
    def forward(self, x):
        return HERE(x) * 2

litert_torch.convert(Model().eval(), (torch.ones(1, 4),))
"""


def test_a_barrier_of_one_tensor_is_not_lowered():
    status, _, errors = run(BARRIER.replace("HERE", "optimization_barrier"))
    assert status
    assert "is not subscriptable" in errors
    status, _, errors = run(BARRIER.replace("HERE", "barrier"))
    assert status == 0, errors


def test_kinds_of_attention_are_a_set(checkpoint_factory):
    """Whose order, that of hashes of strings, decides the order of operators."""
    code = f"""
import transformers
from transformers.models.gemma4 import modeling_gemma4 as gemma4
config = transformers.AutoConfig.from_pretrained({str(checkpoint_factory("text"))!r})
print([name for name, _ in gemma4.Gemma4TextRotaryEmbedding(config).named_buffers()])
"""
    orders = {run(code, PYTHONHASHSEED=str(seed))[1] for seed in range(5)}
    assert len(orders) == 2, orders


def test_the_unified_text_model_is_unknown(checkpoint_factory):
    config = transformers.AutoConfig.from_pretrained(checkpoint_factory("12b"))
    assert config.get_text_config().model_type == "gemma4_unified_text"
    code = """
from litert_torch.generative.export_hf.model_ext import patches
patches.get_patch_context("gemma4")
for name in ("gemma4_text", "gemma4_unified", "gemma4_unified_text"):
    patches.get_patch_context(name)
    print(name in patches._CONTEXT_REGISTRY)
"""
    status, output, errors = run(IMPORT + code)
    assert status == 0, errors
    assert output.split()[0::2][0] == "True"
    assert output.split()[2] == "False"


@pytest.mark.parametrize("layout", ["hub", "transformers"])
def test_heads_that_differ_are_not_read_as_one(layout, checkpoint_factory):
    path = checkpoint_factory("26b-a4b", layout=layout)
    plain = transformers.AutoConfig.from_pretrained(path).get_text_config()
    with pytest.raises(AttributeError):
        _ = plain.num_key_value_heads
    assert text_configuration(transformers.AutoConfig.from_pretrained(path)).num_key_value_heads == 2


def test_the_decoder_of_per_layer_embeddings_forgets_the_cap():
    code = """
import inspect
from litert_torch.generative.export_hf.model_ext.gemma4 import exportable_module as module
text = inspect.getsource(module)
print("lm_head(" in text, "softcap" in text)
"""
    assert run(IMPORT + code)[:2] == (0, "True False\n")
