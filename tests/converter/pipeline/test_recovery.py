"""What a conversion without a proof says of the blocks that it recovered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converter.checkpoint.lattice import bf16_bits, recover
from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.stored import unquantized
from converter.checkpoint.weight import OFF_LATTICE, LatticeRows
from converter.cli.tables import print_report
from converter.errors import CheckpointError
from converter.pipeline.conversion import Conversion, Outcome, convert
from support.schemas import check_output

#: Read by row ranges; the sample that is judged when it is opened does not fill it.
NAME = "embed_tokens.weight"


def noisy(directory: Path, blocks: int, target: Path) -> Path:
    """A copy of a checkpoint in which so many blocks of a matrix are noise."""
    shutil.copytree(directory, target)
    rows = open_checkpoint(directory).weights[NAME].floats(1, 1 + blocks)
    data = bytearray((target / "model.safetensors").read_bytes())
    random = np.random.default_rng(0)
    for row in rows:
        place = data.find(bf16_bits(row).tobytes())
        data[place : place + 64] = bf16_bits(random.normal(size=32).astype(np.float32)).tobytes()
    (target / "model.safetensors").write_bytes(data)
    return target


def converted(model: Path, output: Path) -> Outcome:
    made = convert(Conversion(str(model), ("gguf", "onnx"), output, validation=None), warn=lambda line: None)
    check_output(output)
    return made


@pytest.fixture(scope="module")
def whole(checkpoint_factory: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return converted(checkpoint_factory("text"), tmp_path_factory.mktemp("whole") / "out")


@pytest.fixture(scope="module")
def damaged(checkpoint_factory: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Converted from a checkpoint of which three blocks lie on no lattice."""
    place = tmp_path_factory.mktemp("damaged")
    return converted(noisy(checkpoint_factory("text"), 3, place / "model"), place / "out")


def recovery(outcome: Outcome, target: str) -> dict[str, int]:
    found: dict[str, int] = outcome.report["targets"][target]["recovery"]
    return found


@pytest.mark.parametrize("target", ["gguf", "onnx"])
def test_every_block_of_a_lattice_is_counted_as_exact(whole: Outcome, target: str) -> None:
    found = recovery(whole, target)
    assert found["exact_blocks"] == found["blocks"] > 0
    assert found["coded_matrices"] == found["matrices"] > 0
    assert found["off_lattice_blocks"] == found["not_representable_blocks"] == 0


@pytest.mark.parametrize("target", ["gguf", "onnx"])
def test_blocks_on_no_lattice_are_not_counted_as_exact(whole: Outcome, damaged: Outcome, target: str) -> None:
    found = recovery(damaged, target)
    assert found["blocks"] == recovery(whole, target)["blocks"]
    assert found["off_lattice_blocks"] == 3
    assert found["exact_blocks"] == found["blocks"] - 3


def told(outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, str], str]:
    """The cells of the table for GGUF by their labels, and all that is printed."""
    report = {**outcome.report, "targets": {"gguf": outcome.report["targets"]["gguf"]}}
    print_report(report, None)
    text = capsys.readouterr().out
    rows = (line.split("  ", 1) for line in text.splitlines() if "  " in line)
    return {label: cell.strip() for label, cell in rows}, text


def test_the_table_tells_what_was_recovered_and_that_nothing_was_run(
    whole: Outcome, damaged: Outcome, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = recovery(whole, "gguf")["blocks"]
    (right, text), (wrong, _) = told(whole, capsys), told(damaged, capsys)
    assert right["blocks recovered exactly"] == f"{blocks:,} of {blocks:,}"
    assert wrong["blocks recovered exactly"] == f"{blocks - 3:,} of {blocks:,}"
    assert "blocks on no lattice" not in right
    assert wrong["blocks on no lattice"] == "3"
    assert "Nothing was read back or run." in text


def test_the_reports_tell_it_too(damaged: Outcome) -> None:
    blocks = recovery(damaged, "gguf")["blocks"]
    for name in ("report.md", "report.html"):
        page = (damaged.output / name).read_text()
        assert f"{blocks - 3:,} of {blocks:,}" in page
        assert "Nothing was read back or run." in page
    assert json.loads((damaged.output / "report.json").read_text()) == damaged.report


def test_matrices_that_are_not_stored_as_codes_are_told(
    checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    made = converted(checkpoint_factory("text", "latent"), tmp_path / "out")
    found = recovery(made, "gguf")
    assert found["coded_matrices"] == found["blocks"] == 0
    assert found["matrices"] > 0


def test_a_recovery_that_computes_wrongly_is_refused(
    checkpoint_factory: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(bits: np.ndarray) -> LatticeRows:
        """Codes of 1 too many that are told to be exact."""
        rows = recover(bits)
        codes = np.where((rows.codes > 0) & (rows.codes < 7), rows.codes + 1, rows.codes).astype(np.int8)
        assert (codes != rows.codes).any()
        return LatticeRows(codes, rows.scales, rows.status)

    monkeypatch.setattr(unquantized, "recover", wrong)
    with pytest.raises(CheckpointError, match="recovery computes wrongly on this machine"):
        converted(checkpoint_factory("text"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_told_to_be_off_the_lattice_need_not_give_its_values_back(
    checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(noisy(checkpoint_factory("text"), 1, tmp_path / "model"))
    codes = checkpoint.weights[NAME].codes
    assert codes is not None
    assert codes(1, 2).status[0, 0] == OFF_LATTICE
