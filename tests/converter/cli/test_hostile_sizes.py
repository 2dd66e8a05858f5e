"""Files as large as they may be: what the command takes of memory for them, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

#: Stated for a conversion of any size: resident, in bytes.
LIMIT = 700 << 20
#: Runs the command, then tells the most memory that was resident. ``getrusage`` would tell that of the
#: process which started it, where that had more.
MEASURED = """
import sys
from converter.cli import main
try:
    main()
finally:
    status = open("/proc/self/status").read()
    print(status.split("VmHWM:")[1].split()[0], file=sys.stderr)
"""
Change = Callable[[dict[str, Any]], None]


def changed(model: Path, name: str, change: Change) -> None:
    """Change a JSON file of a checkpoint."""
    content = json.loads((model / name).read_text())
    change(content)
    (model / name).write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")))


def header_changed(model: Path, change: Change) -> None:
    """Change the header of the weights."""
    data = (model / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def merges(count: int, old: bool = False) -> Callable[[Path], None]:
    def change(content: dict[str, Any]) -> None:
        found = [" ".join(pair) if old else pair for pair in content["model"]["merges"]]
        content["model"]["merges"] = (found * (count // len(found) + 1))[:count]

    return lambda model: changed(model, "tokenizer.json", change)


def vocabulary(model: Path) -> None:
    """Tokens that the model has no embeddings for, with characters of four bytes."""

    def change(content: dict[str, Any]) -> None:
        known = content["model"]["vocab"]
        known.update({f"\U0001f600{id}": id for id in range(len(known), 1_040_000)})
        content["model"]["merges"] = (content["model"]["merges"] * 1000)[:690_000]

    changed(model, "tokenizer.json", change)


def metadata(count: int) -> Callable[[Path], None]:
    """A header with one long text of four bytes a character."""

    def change(header: dict[str, Any]) -> None:
        header["__metadata__"] = {"text": "x" * count + "\U0001f600"}

    return lambda model: header_changed(model, change)


def tensors(count: int) -> Callable[[Path], None]:
    """A header with so many tensors more, which are empty."""

    def change(header: dict[str, Any]) -> None:
        end = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
        header.update({f"t{number}": entry for number in range(count)})

    return lambda model: header_changed(model, change)


def index(count: int) -> Callable[[Path], None]:
    """An index of so many tensors that do not exist."""

    def make(model: Path) -> None:
        (model / "model.safetensors").rename(model / "a.safetensors")
        listed = {f"tensor{number}": "a.safetensors" for number in range(count)}
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))

    return make


def config(count: int) -> Callable[[Path], None]:
    def change(content: dict[str, Any]) -> None:
        content["unknown"] = [{"a": 0.5} for _ in range(count)]

    return lambda model: changed(model, "config.json", change)


def converted(model: Path, output: Path) -> tuple[int, int, str]:
    """Exit status, largest resident memory in bytes, and the error of a conversion."""
    command = [sys.executable, "-c", MEASURED, str(model), "--no-validate", "-q", "-o", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    *told, peak = done.stderr.strip().splitlines()
    return done.returncode, int(peak) << 10, "\n".join(told)


@pytest.fixture
def model(demo_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_checkpoint, tmp_path / "model"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "status"),
    [
        pytest.param(merges(1_035_000), 0, id="merges"),
        pytest.param(merges(1_040_000, old=True), 0, id="merges of the older form"),
        pytest.param(vocabulary, 1, id="vocabulary"),
        pytest.param(metadata(50_000_000), 0, id="metadata"),
        pytest.param(tensors(260_000), 1, id="tensors"),
        pytest.param(index(900_000), 1, id="index"),
        pytest.param(config(1_000_000), 0, id="config"),
    ],
)
def test_the_largest_files_stay_within_the_stated_memory(
    change: Callable[[Path], None], status: int, model: Path, tmp_path: Path
) -> None:
    change(model)
    found, peak, told = converted(model, tmp_path / "out")
    assert found == status, told
    assert "holds more than" not in told
    assert peak < LIMIT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(merges(1_350_000), r"tokenizer\.json: holds more than 3145728 values", id="merges"),
        pytest.param(
            merges(1_350_000, old=True),
            r"tokenizer\.json: model\.merges has 1350000 merges, more than the 1048576 that are read",
            id="merges of the older form",
        ),
        pytest.param(
            metadata(51_000_000), r"header: its text takes more than 192 MB of memory", id="metadata"
        ),
        pytest.param(tensors(300_000), r"header: holds more than 1048576 keys", id="tensors"),
        pytest.param(index(1_200_000), r"index\.json: (holds|larger) .*", id="index"),
        pytest.param(config(1_100_000), r"config\.json: holds more than 1048576 keys", id="config"),
    ],
)
def test_larger_ones_are_refused_in_one_line_within_it(
    change: Callable[[Path], None], message: str, model: Path, tmp_path: Path
) -> None:
    change(model)
    status, peak, told = converted(model, tmp_path / "out")
    assert status == 1
    assert re.fullmatch(f"qatconvert: .*{message}", told)
    assert peak < LIMIT
