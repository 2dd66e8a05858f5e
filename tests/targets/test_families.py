"""What a target knows of a family is one object, and a family without one is one error."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from converter.checkpoint.opened import Checkpoint, open_checkpoint
from converter.errors import ExtensionError, TargetError, UsageError
from support.distributions import write_distribution
from targets.families import family_of, known_families
from targets.gguf.family import GgufFamily
from targets.target import find_target, known_targets

ROOT = Path(__file__).parents[2]
#: Where a family may be named: its own modules, and those in which users name models.
OF_FAMILIES = ("gemma.py", "gemma3.py", "gemma4.py")
ELSEWHERE = {
    # llama.cpp's name of a way to tokenise, which any family may choose
    ("targets/gguf/gemma_tokenizer.py", "gemma4"),
    # aliases and the names of the shipped models
    ("converter/names.py", "gemma4-"),
    ("converter/names.py", "gemma4-demo"),
    ("converter/names.py", "gemma4-demo-mobile"),
    # what is known of published models by their short names
    ("converter/pipeline/catalogue.py", "gemma4"),
    ("converter/pipeline/catalogue.py", "gemma4-e2b"),
    ("converter/pipeline/catalogue.py", "gemma4-12b"),
}


@pytest.fixture(scope="module")
def invented(checkpoint_factory) -> Checkpoint:
    """A model that is right but for the name of its family."""
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    return replace(checkpoint, architecture=replace(checkpoint.architecture, family="invented"))


@pytest.mark.parametrize("name", known_targets())
def test_a_family_that_a_target_does_not_know(name: str, invented: Checkpoint) -> None:
    message = f"^{name}: the family invented is not known; known: gemma3, gemma4$"
    target = find_target(name)
    with pytest.raises(TargetError, match=message):
        target.check_model(replace(invented, weights={}), {})
    with pytest.raises(TargetError, match=message):
        target.plan(invented, "m", {})


@pytest.mark.parametrize("name", [*known_targets(), "ollama"])
def test_every_target_knows_both_families(name: str) -> None:
    assert known_families(name) == ("gemma3", "gemma4")


def test_an_object_of_another_target_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = {"qatconvert.families.gguf": {"other": "targets.ollama.gemma:GEMMA3"}}
    monkeypatch.syspath_prepend(write_distribution(tmp_path, "outside", group))
    with pytest.raises(ExtensionError, match=r"'other' of qatconvert\.families\.gguf, .* is no GgufFamily"):
        family_of("gguf", "other", GgufFamily)


def test_a_broken_object_is_named_only_for_its_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invented: Checkpoint, checkpoint_factory
) -> None:
    group = {"qatconvert.families.gguf": {"invented": "no_such_module:IT"}}
    monkeypatch.syspath_prepend(write_distribution(tmp_path, "outside", group))
    target = find_target("gguf")
    assert target.plan(open_checkpoint(checkpoint_factory("text")), "m", {}).artifacts
    with pytest.raises(
        ExtensionError, match=r"'invented' of qatconvert\.families\.gguf, .* cannot be loaded"
    ):
        target.plan(invented, "m", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "silu"}, "activation of this gemma4 is silu; llama.cpp's gemma4 has gelu_tanh"),
        ({"values_normed": False}, "values_normed of this gemma4 is False; llama.cpp's gemma4 has True"),
        (
            {"embedding_scale": 1.0},
            "embedding is scaled by 1.0; llama.cpp's Gemma has the square root",
        ),
    ],
)
def test_gguf_refuses_what_llama_cpp_would_compute_otherwise(
    change: dict[str, object], message: str, checkpoint_factory
) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    other = replace(checkpoint, architecture=replace(checkpoint.architecture, **change))  # type: ignore[arg-type]
    with pytest.raises(TargetError) as caught:
        find_target("gguf").check_model(other, {})
    assert message in str(caught.value)


def test_onnx_refuses_attention_without_norms(checkpoint_factory) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    tensors = {name: shape for name, shape in checkpoint.architecture.tensors.items() if "q_norm" not in name}
    other = replace(checkpoint, architecture=replace(checkpoint.architecture, tensors=tensors))
    with pytest.raises(TargetError, match="norms no queries and keys"):
        find_target("onnx").check_model(other, {})


def test_a_family_without_a_modelfile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invented: Checkpoint
) -> None:
    group = {"qatconvert.families.gguf": {"invented": "targets.gguf.gemma:GEMMA4"}}
    monkeypatch.syspath_prepend(write_distribution(tmp_path / "outside", "outside", group))
    target = find_target("gguf")
    plan = target.plan(invented, "m", {})
    assert (plan.companions, list(plan.requires)) == ((), ["llama.cpp"])
    assert [line for line in plan.warnings if "Modelfile" in line] == [
        "gguf: no Modelfile is written: ollama: the family invented is not known; known: gemma3, gemma4"
    ]
    target.write(invented, plan, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["gguf"]
    artifact = tmp_path / "out" / plan.artifacts[0]
    assert not target.differences(artifact, invented, plan)
    with pytest.raises(UsageError, match="system is for the Modelfile"):
        target.plan(invented, "m", {"system": "Be brief."})
    (tmp_path / "out" / "ollama").mkdir()
    (tmp_path / "out" / "ollama" / "Modelfile").write_text("FROM ../gguf\n")
    (difference,) = target.differences(artifact, invented, plan)
    assert (difference.where, difference.expected) == ("ollama/Modelfile", "no such file")


def named(path: Path) -> Iterator[str]:
    """Texts in a module, but its docstrings, that begin with a family's name."""
    tree = ast.parse(path.read_text("utf-8"))
    told = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in told else None
        if isinstance(text, str) and text.startswith(("gemma3", "gemma4")):
            yield text


def test_only_modules_of_families_name_one() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), text)
        for room in ("converter", "targets", "validation")
        for path in (ROOT / room).rglob("*.py")
        if path.name not in OF_FAMILIES and "demo" not in path.relative_to(ROOT).parts
        for text in named(path)
    }
    assert found == ELSEWHERE


def test_a_comparison_with_a_family_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text('"""gemma3"""\nold = family == "gemma3"\nof = {"gemma4_text": 1}\n')
    assert list(named(tmp_path / "module.py")) == ["gemma3", "gemma4_text"]
