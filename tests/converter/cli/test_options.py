"""An option that has no effect in the call is wrong usage."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

from converter.cli.options import DeclaredOption, ValidationOption
from converter.errors import UsageError
from converter.pipeline.conversion import Conversion, convert
from converter.pipeline.inspection import inspect
from converter.pipeline.opening import open_model
from targets.options import declarations
from targets.target import find_target, known_targets
from validation.gates import MAY_NOT_RUN
from validation.runners import find_runner, known_runtimes

ROOT = Path(__file__).parents[3]
COMMANDS: dict[str, click.Command] = {
    name: import_module(f"converter.cli.{name}").command for name in ("convert", "inspect", "validate")
}
#: A value for each option that takes one and has an effect with a target or a validation alone.
VALUES = {
    "--split-max-size": "2G",
    "--system": "x",
    "--num-ctx": "64",
    "--off-lattice": "q8_0",
    "--onnx-scales": "f16",
    "--onnx-dtype": "float16",
    "--accuracy-level": "4",
    "--provider": "cpu",
    "--prefill-lengths": "64",
    "--litert-activations": "1",
    "--context-length": "512",
    "--npu": "qualcomm:SM8750",
    "--android-assets": "assets",
    "--positions": "64",
    "--reference-dtype": "bfloat16",
    "--max-memory": "4",
    "--gate": "mean_kld=1",
    "--allow-unrun": "graph_kld",
    "--baseline": "naive-q4_0",
    "--runtime": "gguf.llamacpp",
    "--text": __file__,
    "--license": __file__,
}


def parameters(command: str) -> list[click.Parameter]:
    return COMMANDS[command].get_params(click.Context(COMMANDS[command]))


def words(parameter: click.Parameter) -> list[str]:
    flag = isinstance(parameter, click.Option) and parameter.is_flag
    option = (*parameter.secondary_opts, *parameter.opts)[0]
    return [option] if flag else [option, VALUES[option]]


def of_targets(command: str) -> list[DeclaredOption]:
    return [one for one in parameters(command) if isinstance(one, DeclaredOption)]


def of_validation(command: str) -> list[ValidationOption]:
    return [one for one in parameters(command) if isinstance(one, ValidationOption) and not one.always]


def flag(parameter: click.Parameter) -> str:
    return parameter.opts[0]


@pytest.mark.parametrize("name", known_targets())
def test_what_a_target_declares_is_what_it_takes(name):
    (found,) = (one for one in declarations()[0] if one.owner == name)
    assert find_target(name).options == found.group.options


@pytest.mark.parametrize("target", known_runtimes())
def test_what_a_runtime_declares_is_what_it_takes(target):
    declared = {one.owner: one.group.options for one in declarations()[0]}
    for runtime in known_runtimes()[target]:
        assert tuple(find_runner(target, runtime).options) == declared.get(f"{target}.{runtime}", ())


def test_the_command_line_and_the_pipeline_name_no_option_of_a_target():
    options = [option for one in declarations()[0] for option in one.group.options]
    names = {text for option in options for text in (option.name, *option.flags)}
    for path in [path for room in ("cli", "pipeline") for path in (ROOT / "converter" / room).glob("*.py")]:
        # the report's class of blocks, which is called as the option is
        blocks = {"off_lattice"} if path.name in ("inspection.py", "tables.py") else set()
        assert (set(named(path)) & names) - blocks == set(), path


def named(path: Path) -> Iterator[str]:
    """Texts, keywords, parameters and fields of a module; documentation apart."""
    tree = ast.parse(path.read_text("utf-8"))
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value
        elif isinstance(node, ast.arg | ast.keyword):
            yield node.arg or ""
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def test_a_named_option_would_be_found(tmp_path):
    (tmp_path / "a.py").write_text('def f(num_ctx=1): """--system"""; g(npu=2); return ["--license"]')
    assert {"num_ctx", "npu", "--license"} <= set(named(tmp_path / "a.py"))
    assert "--system" not in set(named(tmp_path / "a.py"))


@pytest.mark.parametrize("command", ["convert", "validate"])
def test_every_gate_that_may_not_run_can_be_allowed_and_stands_in_the_help(command):
    (option,) = [one for one in parameters(command) if one.name == "allow_unrun"]
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == MAY_NOT_RUN
    assert all(name in option.help for name in MAY_NOT_RUN)


@pytest.mark.parametrize("parameter", of_targets("convert"), ids=flag)
def test_an_option_without_its_target_names_it(parameter, qatconvert, error_of):
    needs = parameter.offered.targets
    if needs == known_targets():
        pytest.skip("every target takes it")
    target = next(name for name in ("gguf", "onnx") if name not in needs)
    told = error_of(qatconvert("owner/name", "-t", target, *words(parameter), seconds=60), 2)
    assert f"{words(parameter)[0]} has no effect without target {' or '.join(needs)}" in told


@pytest.mark.parametrize("parameter", of_validation("convert"), ids=flag)
def test_an_option_without_its_validation_names_both(parameter, qatconvert, error_of):
    told = error_of(qatconvert("owner/name", "--no-validate", *words(parameter), seconds=60), 2)
    assert words(parameter)[0] in told
    assert "has no effect with --no-validate" in told


def test_an_option_of_a_runtime_needs_a_validation(qatconvert, error_of):
    told = error_of(qatconvert("owner/name", "-t", "onnx", "--no-validate", "--provider", "cpu"), 2)
    assert "--provider has no effect with --no-validate" in told


@pytest.mark.parametrize("parameter", of_targets("inspect"), ids=flag)
def test_inspect_refuses_options_of_targets_that_it_does_not_plan(parameter, qatconvert, error_of):
    if "gguf" in parameter.offered.targets:
        pytest.skip("planned")
    told = error_of(qatconvert("inspect", "owner/name", "-t", "gguf", *words(parameter), seconds=60), 2)
    assert f"{words(parameter)[0]} has no effect without target" in told


@pytest.mark.parametrize(
    ("targets", "options", "told"),
    [
        (["gguf"], {"num_ctxt": 64}, "unknown option 'num_ctxt'; did you mean 'num_ctx'?"),
        (["gguf"], {"accuracy_level": 4}, "--accuracy-level has no effect without target onnx: leave it out"),
        (["onnx"], {"license": "mit", "revision": "0"}, "unknown option 'revision'; known: accuracy_level, "),
    ],
)
def test_python_is_refused_as_the_command_line_is(targets, options, told, tmp_path):
    with pytest.raises(UsageError) as caught:
        convert(Conversion("gemma4-demo", targets, tmp_path / "out", options=options, validation=None))
    assert told in str(caught.value)
    with pytest.raises(UsageError) as caught:
        inspect(open_model("gemma4-demo"), targets, options)
    assert told in str(caught.value)


def test_validate_refuses_a_provider_for_an_artifact_that_has_none(qatconvert, error_of, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    done = qatconvert("validate", tmp_path / "a.gguf", "--reference", "owner/name", "--provider", "cpu")
    assert "--provider has no effect without target onnx" in error_of(done, 2)


def test_defaults_are_not_given_and_options_of_their_target_are_taken(
    qatconvert, checkpoint_factory, tmp_path
):
    model, out = checkpoint_factory("text"), tmp_path / "out"
    done = qatconvert(model, "--no-validate", "--num-ctx", "64", "--split-max-size", "2G", "-o", out)
    assert done.returncode == 0, done.stderr
    for options in ([], ["--onnx-scales", "f16", "--prefill-lengths", "64"]):
        assert qatconvert("inspect", model, *options).returncode == 0


def test_off_lattice_is_known_to_be_given_or_not():
    for name in ("convert", "inspect"):
        (option,) = (one for one in parameters(name) if one.opts == ["--off-lattice"])
        assert option.default is None or repr(option.default).startswith("Sentinel")
