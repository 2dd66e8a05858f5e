"""The likeliest continuation of a prompt in each runtime: new token ids without the one that ends them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def by_onnxruntime(directory: Path, prompt: Sequence[int], count: int, ends: Sequence[int]) -> list[int]:
    """Plain onnxruntime: the prompt at once, then token by token with the outputs' cache fed back."""
    import onnxruntime

    session = onnxruntime.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    dtypes = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    cache = {
        one.name: np.zeros([1, one.shape[1], 0, one.shape[3]], dtypes[one.type])
        for one in session.get_inputs()
        if one.name.startswith("past_key_values.")
    }
    found: list[int] = []
    begin, new = 0, list(prompt)
    while len(found) < count:
        end = begin + len(new)
        inputs = {
            "input_ids": np.array([new], np.int64),
            "attention_mask": np.ones([1, end], np.int64),
            "position_ids": np.arange(begin, end)[None],
        }
        outputs = dict(zip(names, session.run(None, {**inputs, **cache}), strict=True))
        cache = {name: outputs[name.replace("past_key_values", "present")] for name in cache}
        begin, new = end, [int(outputs["logits"][0, -1].argmax())]
        if new[0] in ends:
            break
        found += new
    return found


def by_genai(directory: Path, prompt: Sequence[int], count: int, **options: object) -> list[int]:
    """onnxruntime-genai; ``options`` are those of its search."""
    return batch_by_genai(directory, [prompt], count, **options)[0]


def batch_by_genai(
    directory: Path, prompts: Sequence[Sequence[int]], count: int, **options: object
) -> list[list[int]]:
    """onnxruntime-genai on several prompts at once, the shorter ones padded at their ends."""
    import onnxruntime_genai as genai

    model = genai.Model(str(directory))
    parameters = genai.GeneratorParams(model)
    longest = max(map(len, prompts))
    parameters.set_search_options(
        **{"do_sample": False, "batch_size": len(prompts), "max_length": longest + count, **options}
    )
    generator = genai.Generator(model, parameters)
    tokenizer = genai.Tokenizer(model)
    padded = [[*prompt, *[tokenizer.pad_token_id] * (longest - len(prompt))] for prompt in prompts]
    generator.append_tokens(np.array(padded, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    ends = set(tokenizer.eos_token_ids)
    found = [[int(id) for id in generator.get_sequence(row)][longest:] for row in range(len(prompts))]
    return [ids[: next((at for at, id in enumerate(ids) if id in ends), len(ids))] for ids in found]


def by_transformers(checkpoint: Path, prompt: Sequence[int], count: int, ends: Sequence[int]) -> list[int]:
    """``generate`` of transformers in float32."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        answer = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=list(ends),
            pad_token_id=0,
        )
    found: list[int] = answer[0, len(prompt) :].tolist()
    return [id for id in found if id not in ends]
