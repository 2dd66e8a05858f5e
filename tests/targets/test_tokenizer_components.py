"""A tokenizer's component is refused by name, or the target's real runtime makes transformers' tokens."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import litert_lm
import onnxruntime_genai
import pytest
from transformers import AutoTokenizer

from converter.checkpoint.opened import open_checkpoint, open_description
from converter.errors import TargetError
from support.litert_repacking import TOKENIZER, edit_tokenizer, repack
from support.tokenizer_components import ALL, COMPONENTS, TEXTS
from targets.gguf import target as gguf
from targets.onnx.side_files import generation_files
from targets.target import find_target

pytestmark = pytest.mark.slow


def taken_by(target):
    return [name for name, component in COMPONENTS.items() if target in component.take]


@pytest.fixture(scope="module")
def models(checkpoint_factory, tmp_path_factory):
    """A checkpoint with each component, by the component's name. Its class takes the pipeline of the file;
    the one that published checkpoints name makes its own."""
    source, root = checkpoint_factory("text"), tmp_path_factory.mktemp("components")
    document = (source / "tokenizer.json").read_text(encoding="utf-8")
    made: dict[str, Path] = {}
    for number, (name, component) in enumerate(COMPONENTS.items()):
        directory = root / str(number)
        directory.mkdir()
        for file in source.iterdir():
            (directory / file.name).symlink_to(file)
        (directory / "tokenizer.json").unlink()
        _set_class(directory, "PreTrainedTokenizerFast")
        edited = json.loads(document)
        component.edit(edited)
        (directory / "tokenizer.json").write_text(json.dumps(edited), encoding="utf-8")
        made[name] = directory
    return made


def _set_class(directory, name):
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    path.write_text(json.dumps({**config, "tokenizer_class": name}), encoding="utf-8")


@pytest.fixture(scope="module")
def expected(models):
    """transformers' tokens of the texts, by the component's name."""

    def tokens(name):
        tokenizer = AutoTokenizer.from_pretrained(models[name])
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]

    return tokens


@pytest.mark.parametrize("name", COMPONENTS)
def test_it_is_refused_by_name_by_every_target_that_does_not_take_it(name, models):
    component, described = COMPONENTS[name], open_description(models[name])
    for target in sorted(ALL):
        if target in component.take:
            find_target(target).check_model(described, {})
            continue
        with pytest.raises(TargetError) as caught:
            find_target(target).check_model(described, {})
        message = str(caught.value)
        assert message.startswith(f"{target}: ")
        assert component.names in message
        takers = [f"--target {name}" for name in sorted(component.take)]
        assert message.endswith(
            f": {' or '.join(takers)} does it" if takers else ": take it out of tokenizer.json"
        )
        assert "\n" not in message
        assert len(message) < 300


@pytest.mark.parametrize(
    ("name", "is_taken"),
    [
        ("as it is", True),
        ("space before", True),
        ("bytes without tokens", True),
        ("spaces turned twice", True),
    ]
    + [(name, False) for name in ("lowercase", "prepend", "whitespace", "no bytes", "no decoder")],
)
def test_litert_lm_does_what_transformers_leaves_out_for_gemmas_class(name, is_taken, models, tmp_path):
    directory = shutil.copytree(models[name], tmp_path / "model", symlinks=True)
    _set_class(directory, "GemmaTokenizer")
    check = find_target("litert").check_model
    if is_taken:
        return check(open_description(directory), {})
    with pytest.raises(TargetError, match=r"in which LiteRT-LM and transformers differ, .*: take it out"):
        check(open_description(directory), {})
    check(open_description(models[name]), {})


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_flags_of_the_configuration_count_as_in_transformers(flag, models, tmp_path):
    directory = shutil.copytree(models["as it is"], tmp_path / "model", symlinks=True)
    tokens = open_description(directory).tokenizer
    id = next(id for id, token in tokens.added.items() if token.content == "<|turn>")
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    token = {"content": "<|turn>", "special": True}

    def configured(**flags):
        decoder = {str(id): {**token, **flags}}
        path.write_text(json.dumps({**config, "added_tokens_decoder": decoder}), encoding="utf-8")
        found = AutoTokenizer.from_pretrained(directory)
        return [found(text)["input_ids"] for text in ("a <|turn> b", "a<|turn>b")], open_description(
            directory
        )

    plain, described = configured()
    for target in sorted(ALL):
        find_target(target).check_model(described, {})
    changed, described = configured(**{flag: True})
    assert changed != plain
    for target in sorted(ALL):
        place = f"{target}: tokenizer_config.json: added_tokens_decoder.{id} is '<|turn>' with {flag}"
        with pytest.raises(TargetError, match=re.escape(place)):
            find_target(target).check_model(described, {})


@pytest.mark.parametrize("target", sorted(ALL))
def test_the_plan_refuses_it_too(target, models):
    with pytest.raises(TargetError, match="is a TemplateProcessing that adds '<eos>'"):
        find_target(target).plan(open_checkpoint(models["an end"]), "m", {})


@pytest.mark.parametrize("name", taken_by("gguf"))
def test_llama_cpp_makes_the_same_tokens(name, models, expected, tmp_path):
    checkpoint = open_checkpoint(models[name])
    plan = gguf.plan(checkpoint, "m", {})
    gguf.write(checkpoint, plan, tmp_path)
    request = {"path": str(tmp_path / plan.artifacts[0]), "texts": TEXTS, "run": False}
    script = Path(__file__).parents[1] / "support" / "llama_process.py"
    done = subprocess.run(
        [sys.executable, script], input=json.dumps(request), capture_output=True, text=True, check=True
    )
    assert [ids[1:] for ids in json.loads(done.stdout)["ids"]] == expected(name)


@pytest.mark.parametrize("name", taken_by("onnx"))
def test_genai_makes_the_same_tokens(name, models, expected, tmp_path):
    for file, content in generation_files(open_description(models[name])).items():
        (tmp_path / file).write_bytes(content)
    tokenizer = onnxruntime_genai.Tokenizer(str(tmp_path))
    assert [[int(id) for id in tokenizer.encode(text)] for text in TEXTS] == expected(name)


#: Those that change tokens most; each takes an engine.
ENGINES = ("as it is", "lowercase", "nfkc", "bytes", "scripts after spaces", "space before", "a word alone")
ENGINES += ("an unreachable token reached", "bytes without tokens", "no decoder", "prepend")


@pytest.mark.parametrize("name", ENGINES)
def test_litert_lm_makes_the_same_tokens(name, models, expected, litert_bundle, tmp_path):
    assert "litert" in COMPONENTS[name].take
    content = (models[name] / "tokenizer.json").read_bytes()
    bundle = repack(
        litert_bundle("demo"), tmp_path / "m.litertlm", TOKENIZER, edit_tokenizer(lambda text: content)
    )
    with litert_lm.Engine(str(bundle), backend=litert_lm.Backend.CPU(), cache_dir=":nocache") as engine:
        assert [list(engine.tokenize(text)) for text in TEXTS] == expected(name)
