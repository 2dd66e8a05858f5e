"""Tables and facts as they are read: on narrow terminals, through pipes, by eye."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import converter
from converter.cli import layout
from converter.cli.tables import print_inspection, print_report
from support.stages import without_stages
from support.terminal import on_terminal

DEMO = Path(converter.__file__).parent / "demo" / "gemma4-demo"
Run = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = str(Path(sys.executable).with_name("qatconvert"))


def report(**entry: Any) -> dict[str, Any]:
    """A report of one target."""
    logits = {"positions": 8, "mean_kld": 0.25, "same_top_p": 0.5, "ppl": 11.0, "ppl_reference": 10.0}
    weights = {"exact_fraction": 1.0}
    whole = {"artifact": "gguf/m.gguf", "bytes": 1_234_567, "weight_bytes": 1_000_000, "passed": True}
    whole |= {"bits_per_weight": 4.5678, "logits": logits, "weights": weights, "gates": [], **entry}
    source = {"repo": None, "revision": None, "path": "m", "format": "f", "stored_as": "numbers"}
    return {"model": "m", "source": source, "reference": {"dtype": "float32"}, "targets": {"gguf": whole}}


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("words", [("inspect", "gemma4-demo"), ("inspect", "gemma4-demo", "--tensors")])
def test_a_narrow_terminal_breaks_no_word_and_no_line(
    qatconvert: Run, tmp_path: Path, columns: int, words: tuple[str, ...]
) -> None:
    whole = qatconvert(*words).stdout
    status, told = on_terminal([COMMAND, *words], columns, tmp_path)
    assert status == 0
    assert set(told.split()) == set(whole.split())
    assert max(map(len, told.splitlines())) <= columns
    # each part of a table begins with its first column
    assert told.count("embed_tokens_per_layer") >= whole.count("embed_tokens_per_layer") >= 2


@pytest.mark.parametrize("columns", [80, 60])
def test_a_verdict_is_wrapped_at_words(
    qatconvert: Run, demo_output: Path, tmp_path: Path, columns: int
) -> None:
    whole = qatconvert("verify", demo_output).stdout
    status, told = on_terminal([COMMAND, "verify", str(demo_output)], columns, tmp_path)
    assert status == 0
    assert told.split() == whole.split()
    assert max(map(len, told.splitlines())) <= max(columns, len(str(demo_output)) + 1)  # with its colon


@pytest.mark.parametrize("columns", [80, 60])
def test_a_report_breaks_no_word_and_no_line(qatconvert: Run, tmp_path: Path, columns: int) -> None:
    output = tmp_path / "out"
    assert (
        qatconvert("gemma4-demo", "-t", "gguf", "-t", "onnx", "--no-validate", "-o", output).returncode == 0
    )
    (output / "report.json").write_text(json.dumps(report(gates=[failed()])))
    script = (
        "import json, sys; from pathlib import Path; from converter.cli.tables import print_report;"
        "print_report(json.load(open(sys.argv[1])), Path('somewhere'))"
    )
    command = [sys.executable, "-c", script, str(output / "report.json")]
    whole = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    status, told = on_terminal(command, columns, tmp_path)
    assert status == 0
    assert set(told.split()) == set(whole.split())
    assert max(map(len, told.splitlines())) <= columns


def failed() -> dict[str, Any]:
    note = " ".join(["a note that is longer than any terminal"] * 5)
    return {"name": "mean_kld", "limit": 0.001, "value": 0.25, "passed": False, "note": note}


def test_figures_stand_below_their_targets_each_in_one_form(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(), Path("out"))
    assert capsys.readouterr().out.splitlines() == [
        "m: proven",
        "",
        "                     gguf",
        "verdict            passed",
        "files             1.23 MB",
        "weights in them      1 MB",
        "bits per weight      4.57",
        "exact blocks        100 %",
        "mean KLD             0.25",
        "same top token    50.00 %",
        "perplexity       +10.00 %",
        "",
        "against transformers in float32, whose perplexity is 10.000 (8 positions)",
        "",
        "gguf",
        "  file  gguf/m.gguf",
        "",
        "written to out: report.html has the details",
    ]


@pytest.mark.parametrize(
    ("passed", "gates", "verdict"),
    [
        (True, [], "m: proven"),
        (False, [], "m: FAILED"),
        (None, [failed() | {"passed": None}], "m: not fully proven"),
        (None, [], "m: not validated"),
    ],
)
def test_the_first_line_is_the_verdict(
    capsys: pytest.CaptureFixture[str], passed: bool | None, gates: list[Any], verdict: str
) -> None:
    print_report(report(passed=passed, gates=gates), None)
    assert capsys.readouterr().out.splitlines()[0] == verdict


def test_a_table_that_is_too_wide_is_printed_in_parts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_UNWRAPPED", 16)
    layout.figures(
        ("name", "one", "three", "five"), [("a", "1", "3", "5"), ("bb", "11", "33", "a long cell")]
    )
    told = "name  one  three\na       1      3\nbb     11     33\n"
    told += "\nname         five\na               5\nbb    a long cell\n"
    assert capsys.readouterr().out == told  # what fits nowhere is longer than the line, and whole


def test_wide_characters_take_two_columns(capsys: pytest.CaptureFixture[str]) -> None:
    layout.figures(("", "x"), [("模型", "1"), ("abcd", "2")])
    layout.facts([("模型", "one"), ("abcd", "two")])
    assert capsys.readouterr().out.splitlines() == [
        "      x", "模型  1", "abcd  2", "模型  one", "abcd  two",
    ]  # fmt: skip


def test_markup_and_emoji_codes_of_strangers_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    layout.line("[red]x[/red] :smile:")
    layout.facts([("[bold]", ":smile: [/]")])
    assert capsys.readouterr().out == "[red]x[/red] :smile:\n[bold]  :smile: [/]\n"


@pytest.mark.parametrize("words", [("inspect", "gemma4-demo"), ("inspect", "gemma4-demo", "--json")])
def test_a_reader_that_wants_no_more_is_no_error(tmp_path: Path, words: tuple[str, ...]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run([COMMAND, *words], stdout=theirs, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(theirs)
    assert (done.returncode, without_stages(done.stderr)) == (0, "")


def test_a_full_disk_is_one(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [COMMAND, "inspect", "gemma4-demo"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
    assert (done.returncode, without_stages(done.stderr)) == (1, "qatconvert: No space left on device\n")


def test_an_inspection_sums_up_by_kind_and_lists_all_on_demand(qatconvert: Run) -> None:
    found = json.loads(qatconvert("inspect", "gemma4-demo", "-t", "gguf", "--json").stdout)
    kinds = qatconvert("inspect", "gemma4-demo", "-t", "gguf").stdout
    every = qatconvert("inspect", "gemma4-demo", "-t", "gguf", "--tensors").stdout
    rows = {line.split()[0]: line.split()[1] for line in kinds.splitlines() if "4-bit/32" in line}
    assert sum(map(int, rows.values())) == found["lattice"]["matrices"]
    assert rows["mlp.down_proj"] == "9"
    numbers = next(line for line in kinds.splitlines() if line.startswith("norms, vectors, scalars"))
    assert numbers.split()[3] == str(len(found["weights"]) - found["lattice"]["matrices"])
    assert "--tensors lists every tensor" in kinds
    assert "layers.0" not in kinds
    for weight in found["weights"]:
        assert every.count(f"\n{weight['name']} ") == 2  # what the checkpoint has, and what is stored


def test_kinds_that_differ_within_say_how(capsys: pytest.CaptureFixture[str]) -> None:
    def weight(layer: int, bits: int | None, shape: tuple[int, int], exact: float, blocks: int) -> Any:
        lattice = None if bits is None else {"bits": bits, "block": 32}
        return {"name": f"layers.{layer}.mlp.experts.{layer}.up.weight", "shape": shape, "dtype": "BF16",
                "matrix": True, "lattice": lattice, "scheme": "max/7" if bits else None,
                "blocks": blocks or None, "exact_fraction": exact}  # fmt: skip

    weights = [weight(0, 4, (2, 3), 1.0, 30), weight(1, 4, (2, 3), 0.5, 10), weight(2, None, (4, 3), 0, 0)]
    inspection = {
        "model": "m", "source": report()["source"], "architecture": {}, "parameters": 1, "targets": {},
        "lattice": {"matrices": 2, "of": 3, "share": 0.5, "exact_fraction": 0.875},
        "weights": weights, "left_out": [],
    }  # fmt: skip
    print_inspection(inspection)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mlp.experts.up  ")]
    cells = [cell.strip() for cell in row.split("  ") if cell]
    assert cells[1:] == ["3", "2 x 3 …", "BF16", "4-bit/32 max/7, none", "87.5000 %"]


@pytest.mark.parametrize("columns", [80, 30])
def test_a_command_to_paste_is_one_line_however_narrow_the_terminal(columns: int, tmp_path: Path) -> None:
    script = (
        "import json, sys; from pathlib import Path; from converter.cli.tables import print_report;"
        "print_report(json.load(open(sys.argv[1])), Path('somewhere'), [sys.argv[2]])"
    )
    (tmp_path / "report.json").write_text(json.dumps(report()))
    pasted = f"llama-cli -m {'long ' * 40}m.gguf"
    command = [sys.executable, "-c", script, str(tmp_path / "report.json"), pasted]
    status, told = on_terminal(command, columns, tmp_path, {"PYTHONPATH": str(Path.cwd())})
    assert status == 0
    assert told.splitlines()[-1] == f"try it: {pasted}"


def test_a_conversion_ends_with_how_to_try_it_and_json_with_the_report(
    qatconvert: Run, checkpoint_factory: Callable[..., Path]
) -> None:
    model = checkpoint_factory("text")
    words = (model, "--no-validate", "-o", "a b", "--force")
    lines = qatconvert(*words).stdout.splitlines()
    assert lines[-3] == "written to a b"
    assert lines[-2] == f"try it: llama-cli -m 'a b/gguf/{model.name}-q4_0.gguf'"
    assert lines[-1].startswith(f"try it: ollama create {model.name} -f 'a b/ollama/Modelfile'")
    assert "try it" not in qatconvert(*words, "--json").stdout


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""},
    ],
)
def test_an_output_of_ascii_alone_gets_words_for_what_it_lacks(environment, tmp_path):
    """Also a model whose directory has another name, and one that is not there."""
    (tmp_path / "m\u00f6del").symlink_to(DEMO)
    for words in (["inspect", "./m\u00f6del", "-q"], ["./m\u00f6del", "--dry-run"], ["models"], ["./\u00fc"]):
        done = subprocess.run(
            [COMMAND, *words], capture_output=True, cwd=tmp_path, env={**os.environ, **environment}
        )
        assert done.returncode == (2 if words == ["./\u00fc"] else 0), done.stderr
        assert (done.stdout + done.stderr).isascii()
        assert b"Traceback" not in done.stderr
        if "inspect" in words or "--dry-run" in words:
            assert b"x 128 ..." in done.stdout
            assert b"?" not in done.stdout
