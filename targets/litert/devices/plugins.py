"""What the compiler plugins in ai-edge-litert say of a plan: what each vendor's processor takes.

A plugin says of every operator of a model whether its vendor's compiler takes it; the others stay on the CPU.
The package has the plugins, and a program that asks them. Most of them need libraries of their vendor's SDK
for the answer, which are not in it: what could not be asked is told with what is missing.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from targets.accelerators import Accelerator, Cell
from targets.litert.devices.npu import SDKS
from targets.litert.storage import ROWS
from targets.target import Plan

#: Vendors with a plugin.
VENDORS: Final = ("google_tensor", "intel_openvino", "mediatek", "qualcomm", "samsung")
_PACKAGE: Final = "ai_edge_litert"
_PROGRAM: Final = "tools/apply_plugin_main"
#: The libraries that a plugin needs of another package, by vendor.
_LIBRARIES: Final[Mapping[str, tuple[str, str]]] = {"intel_openvino": ("openvino", "libs")}
_OPERATORS: Final = ("EMBEDDING_LOOKUP", "FULLY_CONNECTED")
_SECONDS: Final = 60.0
_LONGEST: Final = 160
_ANSWER: Final = re.compile(r"Partitioned subgraph<(\d+)>, selected (\d+) ops, from a total of (\d+) ops")
_MISSING: Final = re.compile(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file")
_SYMBOL: Final = re.compile(r"undefined symbol: (\w+)")
_ERROR: Final = re.compile(r"^ERROR: (?:\[[^]]*\] )?(.+)$", re.MULTILINE)


def ask_all(plan: Plan) -> list[Accelerator]:
    """What every vendor's plugin says of ``plan``. Needs the packages of the extra ``litert``; without them
    nothing is asked, which each of them tells."""
    cells = cells_of(plan)
    if find_spec(_PACKAGE) is None:
        missing = "ai-edge-litert is not installed: pip install 'qatconvert[litert]'"
        return [Accelerator(vendor, None, cells, missing) for vendor in VENDORS]
    from targets.litert.devices.probes import write_probes

    with tempfile.TemporaryDirectory(prefix="qatconvert-") as name:
        model = Path(name) / "probes.tflite"
        write_probes(cells, model)
        return [_ask(vendor, cells, model) for vendor in VENDORS]


def cells_of(plan: Plan) -> list[Cell]:
    """The ways in which operators of ``plan`` read weights. Of a checkpoint with static grids, products are
    told both as they take them and as they round activations by their own values."""
    found = []
    for operator, types in plan.operators.items():
        for type_name in types if operator in _OPERATORS else ():
            if operator == "EMBEDDING_LOOKUP":
                found.append(Cell(operator, type_name, ""))
                continue
            if type_name in ROWS and plan.has_grids:
                found.append(Cell(operator, type_name, "static int8"))
            found.append(Cell(operator, type_name, "float32"))
    return found


def _ask(vendor: str, cells: Sequence[Cell], model: Path) -> Accelerator:
    """What a vendor's plugin says of the functions of ``model``, one for each of ``cells``."""
    package = Path(str(import_module(_PACKAGE).__file__)).parent
    target = import_module(f"{_PACKAGE}.aot.vendors.{vendor}.target")
    maker = next(iter(target.SocManufacturer)).value
    processor = [one.value for one in target.SocModel if one.value != "ALL"][-1]
    command = [
        str(package / _PROGRAM),
        "--cmd=partition",
        f"--model={model}",
        f"--o={model.with_suffix('.out')}",
        f"--libs={package / 'vendors' / vendor / 'compiler'}",
        f"--soc_manufacturer={maker}",
        # as the package itself calls the plugin
        f"--soc_model={processor.lower() if vendor == 'mediatek' else processor}",
        "--err=--",
    ]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            env=_environment(vendor),
            cwd=model.parent,  # some plugins leave files where they run
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Accelerator(vendor, processor, cells, _short(f"its plugin cannot be asked: {error}"))
    told = done.stdout + done.stderr
    answers = {int(index): selected == total for index, selected, total in _ANSWER.findall(told)}
    if done.returncode or set(answers) != set(range(len(cells))):
        return Accelerator(vendor, processor, cells, _reason(vendor, told, done.returncode))
    answered = [replace(cell, taken=answers[index]) for index, cell in enumerate(cells)]
    return Accelerator(vendor, processor, answered)


def _environment(vendor: str) -> dict[str, str]:
    """The environment in which a plugin finds its vendor's libraries, where these are installed."""
    places = [os.environ.get("LD_LIBRARY_PATH", "")]
    if vendor in _LIBRARIES:
        package, folder = _LIBRARIES[vendor]
        spec = find_spec(package)
        places += [str(Path(one) / folder) for one in (spec.submodule_search_locations or ())] if spec else []
    sdk = f"{_PACKAGE}_sdk_{vendor}"
    if find_spec(sdk) is not None:
        with suppress(Exception):  # another package's code; the plugin tells what it lacks
            places.append(str(import_module(sdk).path_to_sdk_libs()))
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    return {**kept, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, places))}


def _reason(vendor: str, told: str, status: int) -> str:
    """In a line why a plugin did not answer, by what it printed."""
    if missing := _MISSING.search(told):
        reason = f"{missing[1]} is not installed"
    elif symbol := _SYMBOL.search(told):
        reason = f"its plugin does not load: undefined symbol {symbol[1]}"
    elif errors := _ERROR.findall(told):
        reason = errors[-1].rpartition(": ")[2]
    else:
        reason = f"its plugin gave no answer (status {status})"
    package = SDKS.get(vendor)
    needs_sdk = package is not None and find_spec(package.replace("-", "_")) is None
    return _short(reason) + (f" (pip install {package})" if needs_sdk else "")


def _short(text: str) -> str:
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."
