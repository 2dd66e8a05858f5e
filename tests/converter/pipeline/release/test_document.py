"""Release files: what they mean, and what is said of one that means nothing."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from converter.errors import UsageError
from converter.pipeline.release.document import read_release
from converter.pipeline.release.places import line_of, lines_of

ROOT = Path(__file__).parents[4]
EXAMPLE = ROOT / "examples" / "release.toml"
SCHEMA = json.loads((ROOT / "docs" / "schemas" / "release.schema.json").read_text())

TEXT = """# a comment = 1
name = "x"

[defaults]
targets = [
  "gguf",
]
text = '''
[models]
model = 3
'''

[[models]] # one
model = "a"
options.gguf.off_lattice = "bf16"

  [[models]]
  "model" = "b"
  [models.options.gguf]
  off_lattice = "q8_0"
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("name",), 2),
        (("defaults", "targets"), 5),
        (("defaults", "targets", 0), 5),
        (("models",), 13),
        (("models", 0, "model"), 14),
        (("models", 0, "options", "gguf", "off_lattice"), 15),
        (("models", 1), 17),
        (("models", 1, "model"), 18),
        (("models", 1, "options", "gguf"), 19),
        (("models", 1, "options", "gguf", "off_lattice"), 20),
        (("models", 1, "options", "onnx"), 19),
        (("nothing",), None),
    ],
)
def test_keys_are_found_on_their_lines(path: tuple[str | int, ...], line: int | None) -> None:
    tomllib.loads(TEXT)
    assert line_of(lines_of(TEXT), path) == line


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(text, "utf-8")
    return path


def test_the_example_means_what_it_says() -> None:
    release = read_release(EXAMPLE)
    assert (release.name, release.output) == ("demo", ROOT / "out" / "demo-release")
    assert [item.name for item in release.items] == ["gemma4-demo", "gemma4-demo-mobile"]
    assert {item.targets for item in release.items} == {("gguf", "onnx", "litert")}
    assert release.items[1].options == {"litert": {"context_length": 512}, "onnx": {"accuracy_level": 4}}
    assert release.items[0].validation == {"positions": 256, "gates": {"mean_kld": 0.005}}


def test_a_models_own_settings_come_before_the_defaults(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        [defaults]
        targets = ["gguf", "litert"]
        options.litert = {context_length = 512, prefill_lengths = [32, 64]}
        validation.positions = 64
        [[models]]
        model = "gemma4-demo"
        [[models]]
        model = "gemma4-demo-mobile"
        name = "small"
        targets = ["litert"]
        options.litert.context_length = 256
        validation = {text = "held out.txt", same_weights = false, allow_unrun = ["graph_kld"]}
        """,
    )
    (tmp_path / "held out.txt").write_text("words")
    first, second = read_release(path).items
    assert (first.targets, first.options["litert"]["context_length"]) == (("gguf", "litert"), 512)
    assert (second.name, second.targets, second.model) == ("small", ("litert",), "gemma4-demo-mobile")
    assert second.options == {"litert": {"context_length": 256, "prefill_lengths": (32, 64)}}
    assert second.validation == {
        "positions": 64,
        "text": tmp_path / "held out.txt",
        "same_weights": False,
        "allow_unrun": ("graph_kld",),
    }


MODEL = '[[models]]\nmodel = "gemma4-demo"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = [", "r.toml: not valid TOML: "),
        ("", "r.toml: no [[models]]: name at least one model"),
        ("schema = 2\n" + MODEL, "r.toml:1: schema is 2, and this version reads 1"),
        ("nmae = 'x'\n" + MODEL, "r.toml:1: nmae is no key here (did you mean name?)"),
        (MODEL + "targts = ['gguf']", "r.toml:3: models[0].targts is no key here (did you mean targets?)"),
        (MODEL + "targets = 'gguf'", "r.toml:3: models[0].targets is a string, expected a list of strings"),
        (
            MODEL + "targets = ['gguff']",
            "models[0].targets[0] 'gguff' is no target (did you mean gguf?)",
        ),
        (MODEL + "targets = []", "r.toml:3: models[0].targets is empty: name at least one target"),
        ("[[models]]\n", "r.toml:1: models[0] has no model: give a short name"),
        ("models = 3\n", "r.toml:1: models is an integer, expected a list of tables"),
        ("[[models]]\nmodel = 'nowhere'\n", "r.toml:2: models[0].model : "),
        (MODEL + "revision = 'main'", "r.toml:3: models[0].revision : gemma4-demo ships with qatconvert"),
        (MODEL + MODEL, "r.toml:4: models[1].model 'gemma4-demo' is listed twice (models[0] too)"),
        (
            MODEL + "[[models]]\nmodel = 'gemma4-demo-mobile'\nname = 'gemma4-demo'",
            "r.toml:5: models[1].name 'gemma4-demo' is that of models[0] too",
        ),
        (MODEL + "name = '../up'", "r.toml:3: models[0].name '../up' cannot name files"),
        (
            MODEL + "options.onnx.accuracy_level = 4",
            "models[0].options.onnx has no effect: onnx is not among",
        ),
        (
            MODEL + "targets=['onnx']\n[models.options.onnx]\naccuracy = 4",
            "r.toml:5: models[0].options.onnx.accuracy is no key here (did you mean accuracy_level?)",
        ),
        (
            MODEL + "targets=['onnx']\n[models.options.onnx]\naccuracy_level = 'x'",
            "r.toml:5: models[0].options.onnx.accuracy_level is a string, expected a number",
        ),
        (
            MODEL + "[models.options.gguf]\noff_lattice = 'q8'",
            "r.toml:4: models[0].options.gguf.off_lattice is 'q8' (did you mean q8_0?)",
        ),
        (
            MODEL + "targets=['litert']\noptions.litert.android_assets = '/x'",
            "models[0].options.litert.android_assets is no key here",
        ),
        (
            MODEL + "[models.validation]\npositions = 0",
            "r.toml:4: models[0].validation.positions is 0, outside",
        ),
        (MODEL + "[models.validation]\npositions = true", "positions is a boolean, expected a number"),
        (
            MODEL + "[models.validation]\ntext = 'no.txt'",
            "models[0].validation.text is 'no.txt', which is no file",
        ),
        (
            MODEL + "[models.validation.gates]\nmean_kdl = 1",
            "r.toml:4: models[0].validation.gates.mean_kdl is no key here (did you mean mean_kld?)",
        ),
        (MODEL + "[models.validation.gates]\nmean_kld = -1", "mean_kld is -1, expected a number, 0 or more"),
        (MODEL + "[models.validation]\nbaseline = 'naive'", "baseline is 'naive' (did you mean naive-q4_0?)"),
    ],
)
def test_what_means_nothing_is_one_line_with_its_place(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        read_release(written(tmp_path, text))
    message = str(raised.value)
    assert told in message
    assert message.isprintable()
    assert message.startswith(str(tmp_path / "r.toml"))


# the published schema


def faults(text: str) -> list[Any]:
    return list(Draft202012Validator(SCHEMA).iter_errors(tomllib.loads(text)))


def test_the_schema_takes_what_is_read_and_refuses_what_is_not() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert not faults(EXAMPLE.read_text())
    for wrong in (
        "",
        "nmae = 'x'\n" + MODEL,
        MODEL + "targets = []",
        MODEL + "targets = 'gguf'",
        MODEL + "targts = ['gguf']",
        MODEL + "validation.positions = 0",
        MODEL + "validation.gates.mean_kdl = 1",
        "[[models]]\n",
    ):
        assert faults(wrong), wrong


def test_the_schema_knows_every_gate_and_every_setting() -> None:
    from converter.pipeline.release import document
    from validation.limits import KNOWN

    validation = SCHEMA["$defs"]["validation"]["properties"]
    assert set(validation) == set(document._VALIDATION)
    assert set(validation["gates"]["properties"]) == set(KNOWN)
    assert set(SCHEMA["properties"]) == set(document._TOP)
    assert set(SCHEMA["properties"]["models"]["items"]["properties"]) == set(document._MODEL)
    assert set(SCHEMA["properties"]["defaults"]["properties"]) == set(document._DEFAULTS)
