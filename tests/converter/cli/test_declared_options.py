"""Targets and runtimes of other distributions bring their options and their help."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from support.distributions import write_distribution
from targets.options import OF_EVERY_VALIDATION
from validation.settings import Settings

#: A target that writes its options and nothing else.
Points = dict[str, dict[str, str]]
TAPE = {
    "tape_declared": """
        from targets.options import OFF_LATTICE, WRITTEN, Option, OptionGroup

        OPTIONS = OptionGroup("Paper tape", (
            OFF_LATTICE,
            Option("tape_speed", "Rows a second.", ("--tape-speed",), kind="integer", least=1),
            Option("tape_colour", "Colour.", ("--tape-colour",), kind="choice", choices=("pink", "blue"),
                   repeatable=True, commands=WRITTEN),
        ))
    """,
    "tape": """
        from converter.system.progress import no_progress
        from targets.target import Plan, PlannedFile, Stored
        from tape_declared import OPTIONS

        class Tape:
            name, suffix, extra, modules, libraries = "tape", ".tape", "", (), ()
            options = OPTIONS.options

            def check(self, options):
                pass

            check_model = lambda self, checkpoint, options: None
            choices = lambda self, plan: ()
            deliver = lambda self, *words: ()

            def plan(self, checkpoint, name, options, progress=no_progress):
                own = {key: value for key, value in options.items() if key.startswith(("tape", "off"))}
                files = (PlannedFile("tape/punched.tape"),)
                return Plan(self.name, files, (), options={"name": name, **own})

            def write(self, checkpoint, plan, directory, progress=no_progress):
                path = directory / plan.artifacts[0]
                path.parent.mkdir()
                path.write_text(repr(sorted(plan.options)))
                return Stored()

        target = Tape()
    """,
}
POINTS = {
    "qatconvert.targets": {"tape": "tape:target"},
    "qatconvert.options": {"tape": "tape_declared:OPTIONS"},
}
#: llama.cpp under another name that sorts before its own, with an option.
ANOTHER = {
    "another_declared": """
        from targets.options import VALIDATED, Option, OptionGroup

        NOTE = Option("note", "What the report is to say.", ("--another-note",), commands=VALIDATED)
        OPTIONS = OptionGroup("Another llama.cpp", (NOTE,))
    """,
    "another": """
        from another_declared import OPTIONS
        from validation.runners import Runtime
        from validation.runtimes.llamacpp import runner as original

        class Another:
            options = OPTIONS.options

            def __init__(self, note=None):
                self.note = note

            def __getattr__(self, name):
                return getattr(original, name)

            def configured(self, options):
                return Another(options.get("note"))

            def logits(self, *words, **named):
                found = original.logits(*words, **named)
                return Runtime("another", found.version, {**found.settings, "note_given": self.note})

        runner = Another()
    """,
}
RUNTIME = {
    "qatconvert.runtimes": {"gguf.another": "another:runner"},
    "qatconvert.options": {"gguf.another": "another_declared:OPTIONS"},
}


def install(
    place: Path, name: str, modules: dict[str, str], points: dict[str, dict[str, str]]
) -> dict[str, str]:
    """The environment in which Python finds a distribution of these modules."""
    return {"PYTHONPATH": str(write_distribution(place, name, points, modules))}


@pytest.fixture
def tape(tmp_path: Path) -> dict[str, str]:
    return install(tmp_path / "site", "qatconvert-tape", TAPE, POINTS)


@pytest.fixture
def another(tmp_path: Path) -> dict[str, str]:
    return install(tmp_path / "site", "qatconvert-another", ANOTHER, RUNTIME)


def sections(text: str) -> dict[str, str]:
    """The text of a help under each heading."""
    parts = re.split(r"^([A-Z].*):\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_options_stand_under_their_targets_in_80_columns(qatconvert):
    done = qatconvert("convert", "--help", environment={"COLUMNS": "80"})
    found = sections(done.stdout)
    own = ["Output", "Source", "Results and messages"]
    assert list(found) == [*own, "Several targets", "GGUF and Ollama", "LiteRT", "ONNX", "Validation"]
    for heading, flag in (
        ("Output", "--dry-run"),
        ("Source", "--offline"),
        ("Results and messages", "--debug"),
        ("Several targets", "--off-lattice"),  # of all three
        ("GGUF and Ollama", "--num-ctx"),
        ("LiteRT", "--npu"),
        ("ONNX", "--accuracy-level"),
        ("ONNX", "--provider"),
        ("Validation", "--gate"),
        ("Validation", "--runtime"),
    ):
        assert [name for name, text in found.items() if flag in text] == [heading]
    assert max(map(len, done.stdout.split("Output:")[1].splitlines())) <= 80


@pytest.mark.parametrize(
    ("command", "heading"),
    [
        ("convert", "Output"),
        ("inspect", "Examination"),
        ("validate", "Examination"),
        ("doctor", "Examination"),
    ],
)
def test_a_target_stands_under_output_only_where_one_is_written(qatconvert, command, heading):
    found = sections(qatconvert(command, "--help").stdout)
    assert [name for name, text in found.items() if re.search(r"^ .*--target ", text, re.MULTILINE)] == [
        heading
    ]


def test_an_outside_target_has_its_own_group_in_the_help(qatconvert, tape):
    found = sections(qatconvert("convert", "--help", environment=tape).stdout)
    assert found["Paper tape"].split() == [
        *["--tape-speed", "INTEGER", "RANGE", "Rows", "a", "second.", "[x>=1]"],
        *["--tape-colour", "[pink|blue]", "Colour."],
    ]
    inspected = sections(qatconvert("inspect", "--help", environment=tape).stdout)
    assert "--tape-speed" in inspected["Paper tape"]
    assert "--tape-colour" not in inspected["Paper tape"]
    assert "tape" not in qatconvert("validate", "--help", environment=tape).stdout


def test_a_target_that_does_not_say_what_it_stored_is_named(qatconvert, tmp_path):
    older = {**TAPE, "tape": TAPE["tape"].replace("return Stored()", "return []")}
    environment = install(tmp_path / "site", "qatconvert-tape", older, POINTS)
    done = qatconvert("gemma4-demo", "-t", "tape", "--no-validate", environment=environment)
    assert done.returncode == 1
    assert done.stderr == (
        "qatconvert: target tape says by a list what it has written, not by a Stored: it is made for another "
        "version of qatconvert\n"
    )
    assert list((tmp_path / "work").iterdir()) == []


def test_its_options_reach_its_plan(qatconvert, tape, tmp_path):
    out = tmp_path / "out"
    words = ["--tape-speed", "7", "--tape-colour", "pink", "--tape-colour", "blue", "--off-lattice", "bf16"]
    done = qatconvert("gemma4-demo", "-t", "tape", "--no-validate", *words, "-o", out, environment=tape)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    options = json.loads((out / "manifest.json").read_text())["targets"]["tape"]["options"]
    assert options == {
        "name": "gemma4-demo",
        "tape_speed": 7,
        "tape_colour": ["pink", "blue"],
        "off_lattice": "bf16",
    }
    assert (out / "tape" / "punched.tape").exists()


def test_its_options_have_no_effect_without_it(qatconvert, error_of, tape):
    told = error_of(qatconvert("owner/name", "--tape-speed", "7", environment=tape), 2)
    assert "--tape-speed has no effect without target tape: leave it out, or add the target" in told


@pytest.mark.parametrize("words", [("--tape-speed", "0"), ("--tape-colour", "red")])
def test_values_are_of_the_declared_kind(words, qatconvert, error_of, tape):
    assert words[0] in error_of(qatconvert("owner/name", "-t", "tape", *words, environment=tape), 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise RuntimeError('no such tape')", "RuntimeError: no such tape"),
        ("OPTIONS = ['--tape']", "TypeError: tape_declared:OPTIONS is no OptionGroup"),
        ("raise SystemExit(5)", "SystemExit: 5"),
        (
            "from targets.options import Option, OptionGroup\nOPTIONS = OptionGroup('T', Option('a', ''))",
            "TypeError: tape_declared:OPTIONS has options that are no tuple of Option",
        ),
        (
            "from targets.options import Option, OptionGroup\n"
            "one = Option('a', '', ('--a',), kind='choice', choices=('b',), default='c')\n"
            "OPTIONS = OptionGroup('T', (one,))",
            "ValueError: option a: the default 'c' is none of its values",
        ),
        (
            "from targets.options import Option\nOPTIONS = Option('tape', '', ('tape',))",
            "ValueError: option tape: a flag begins with a hyphen: tape",
        ),
    ],
)
def test_a_broken_declaration_is_one_line_and_breaks_no_help(text, reason, qatconvert, tmp_path):
    broken = install(tmp_path / "site", "qatconvert-tape", {**TAPE, "tape_declared": text}, POINTS)
    done = qatconvert("convert", "--help", environment=broken)
    assert done.returncode == 0
    assert "--num-ctx" in done.stdout
    line = f"qatconvert: warning: qatconvert-tape 1.0 declares no options of tape: {reason}\n"
    assert done.stderr == line
    assert qatconvert("--help", environment=broken).stderr == ""


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (
            "Option('num_ctx', 'Another meaning.', ('--num-ctx',))",
            r"option num_ctx is declared by target gguf \(of qatconvert 0.1.0\) and otherwise by target tape "
            r"\(of qatconvert-tape 1.0\)",
        ),
        (
            "Option('own', 'Another meaning.', ('--num-ctx',))",
            r"option --num-ctx is declared by target gguf \(of .*\) and otherwise by target tape \(of ",
        ),
        (
            "Option('own', 'Another meaning.', ('--output',))",
            r"option --output is declared by target tape \(of qatconvert-tape 1.0\) and is one of qatconvert "
            "convert",
        ),
    ],
)
def test_declarations_that_contradict_each_other_name_both_distributions(
    option, told, qatconvert, error_of, tmp_path
):
    text = f"from targets.options import Option, OptionGroup\nOPTIONS = OptionGroup('T', ({option},))"
    both = install(tmp_path / "site", "qatconvert-tape", {**TAPE, "tape_declared": text}, POINTS)
    assert re.search(told, error_of(qatconvert("convert", "--help", environment=both), 2))


def test_a_default_counts_with_its_target_alone(qatconvert, tmp_path, checkpoint_factory):
    text = TAPE["tape_declared"].replace("least=1)", "least=1, default=7)")
    assert text != TAPE["tape_declared"]
    site = install(tmp_path / "site", "qatconvert-tape", {**TAPE, "tape_declared": text}, POINTS)
    model = checkpoint_factory("text")
    done = qatconvert(model, "--no-validate", "-o", "gguf", "-q", environment=site)
    assert done.returncode == 0, done.stderr
    assert qatconvert("inspect", model, "-t", "gguf", environment=site).returncode == 0
    done = qatconvert(model, "-t", "tape", "--no-validate", "-o", "tape", "-q", environment=site)
    assert done.returncode == 0, done.stderr
    assert "tape_speed" in (tmp_path / "work" / "tape" / "tape" / "punched.tape").read_text()


def test_a_target_that_cannot_be_loaded_stands_in_an_inspection_with_the_reason(
    qatconvert, error_of, tmp_path, checkpoint_factory
):
    points = {"qatconvert.targets": {"broken": "broken_target:target"}}
    site = install(tmp_path / "site", "other", {"broken_target": "raise RuntimeError('no such')"}, points)
    model = checkpoint_factory("text")
    done = qatconvert("inspect", model, "--json", environment=site)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["targets"]
    assert "entry point 'broken' of qatconvert.targets, which 'other' registers" in found["broken"]["error"]
    assert found["gguf"]["bytes"] > 0
    told = error_of(qatconvert("inspect", model, "-t", "broken", environment=site))
    assert "cannot be loaded: RuntimeError: no such" in told


def test_the_same_declaration_of_two_targets_is_one_option(qatconvert, tape):
    done = qatconvert("convert", "--help", environment=tape)
    assert done.stdout.count("--off-lattice") == 1
    assert done.stderr == ""


def test_a_runtime_that_was_chosen_runs_the_artifact(qatconvert, another, checkpoint_factory):
    words = ["--positions", "32", "--json", "--no-same-weights"]
    done = qatconvert(
        checkpoint_factory("text"),
        *words,
        "--runtime",
        "gguf.another",
        "--another-note",
        "seen",
        environment=another,
    )
    runtime = json.loads(done.stdout)["targets"]["gguf"]["runtime"]
    assert (runtime["name"], runtime["runner"]) == ("another", "gguf.another")
    assert runtime["note_given"] == "seen"


def test_the_runtime_that_comes_with_the_target_stays_the_default(another):
    script = "from validation.runners import known_runtimes, runtime_of\n"
    script += "print(known_runtimes()['gguf'], runtime_of('gguf'))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, **another},
        check=True,
    )
    assert done.stdout == "('another', 'llamacpp') gguf.llamacpp\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--runtime", "gguf.other"], "unknown runtime 'gguf.other' (did you mean gguf.another?); known: "),
        (["--runtime", "onnx.onnxruntime"], "--runtime onnx.onnxruntime has no effect without target onnx"),
        (
            ["--runtime", "gguf.another", "--runtime", "gguf.llamacpp"],
            "runtimes gguf.another and gguf.llamacpp are of one target: give one",
        ),
        (["--runtime", "gguf.another", "--no-validate"], "--runtime has no effect with --no-validate"),
        (["--another-note", "x", "--no-validate"], "--another-note has no effect with --no-validate"),
        (["--another-note", "x", "-t", "onnx"], "--another-note has no effect without target gguf"),
        (
            ["--another-note", "x"],
            "--another-note is an option of runtime gguf.another (of qatconvert-another 1.0) and has no "
            "effect in gguf.llamacpp",
        ),
    ],
)
def test_a_runtime_without_effect_is_refused(words, told, qatconvert, error_of, another):
    assert told in error_of(qatconvert("owner/name", *words, environment=another), 2)


def test_an_option_of_a_runtime_is_called_like_no_setting_of_every_validation(
    qatconvert, error_of, tmp_path, checkpoint_factory
):
    text = ANOTHER["another_declared"].replace('"note"', '"positions"')
    both = install(tmp_path / "site", "qatconvert-another", {**ANOTHER, "another_declared": text}, RUNTIME)
    told = "option positions of runtime gguf.another is called like a setting of every validation"
    done = qatconvert("convert", "--help", environment=both)
    assert done.returncode == 0
    assert done.stderr.endswith(
        f"qatconvert-another 1.0 declares no options of gguf.another: UsageError: {told}\n"
    )
    words = ("convert", checkpoint_factory("text"), "--positions", "32", "--no-same-weights", "-q")
    done = qatconvert(*words, "-o", tmp_path / "out", environment=both)  # in llama.cpp itself
    assert done.returncode in {0, 3}, done.stderr
    words += ("--runtime", "gguf.another", "-o", tmp_path / "other")
    done = qatconvert(*words, environment=both)
    assert done.returncode == 2
    assert done.stderr.endswith(f"qatconvert: {told}\n")


def test_no_setting_of_every_validation_is_left_out():
    assert {field.name for field in fields(Settings)} == OF_EVERY_VALIDATION


@pytest.mark.parametrize("repeatable", [False, True])
def test_a_manifest_has_no_content_and_no_place_of_a_runtimes_option(
    repeatable, qatconvert, tmp_path, checkpoint_factory
):
    options = f"""
        from targets.options import VALIDATED, Option, OptionGroup

        BOTH = dict(repeatable={repeatable}, commands=VALIDATED)
        OPTIONS = OptionGroup("Another llama.cpp", (
            Option("note", "File.", ("--another-note",), kind="file", **BOTH),
            Option("trace", "Place.", ("--another-trace",), kind="path", **BOTH),
            Option("depth", "Number.", ("--another-depth",), kind="integer", commands=VALIDATED),
        ))
    """
    site = install(tmp_path / "site", "qatconvert-another", {**ANOTHER, "another_declared": options}, RUNTIME)
    (tmp_path / "note").write_text(f"kept in {tmp_path}")
    words = ["--positions", "32", "--no-same-weights", "--runtime", "gguf.another", "-q"]
    words += ["-o", tmp_path / "out"]
    words += ["--another-note", tmp_path / "note", "--another-trace", tmp_path / "t", "--another-depth", "3"]
    done = qatconvert("convert", checkpoint_factory("text"), *words, environment=site)
    assert done.returncode in {0, 3}, done.stderr
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert str(tmp_path) not in text
    recorded = json.loads(text)["options"]["validation"]
    digest = hashlib.sha256((tmp_path / "note").read_bytes()).hexdigest()
    assert recorded["note"] == ([digest] if repeatable else digest)
    assert "trace" not in recorded
    assert recorded["depth"] == 3


@pytest.mark.parametrize("command", ["convert", "inspect", "validate", "modelfile"])
def test_help_imports_nothing_heavy(command, tape):
    script = (
        "import sys; from converter.cli import main\n"
        f"try: main(['{command}', '--help'])\n"
        "finally:\n"
        "    heavy = {'numpy', 'gguf', 'torch', 'onnx', 'transformers', 'numba', 'tape', 'targets.target'}\n"
        "    print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **tape}
    )
    assert done.stderr == "[]\n"
