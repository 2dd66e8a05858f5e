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
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from targets.accelerators import Accelerator, Cell
from targets.litert.devices.npu import SDKS
from targets.litert.storage import ROWS
from targets.target import Plan

#: Vendors with a plugin.
VENDORS: Final = ("google_tensor", "intel_openvino", "mediatek", "qualcomm", "samsung")
_PACKAGE: Final = "ai_edge_litert"
_PROGRAM: Final = "tools/apply_plugin_main"
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
    processor, arguments, libraries = _asked(vendor)
    package = Path(str(import_module(_PACKAGE).__file__)).parent
    command = [
        str(package / _PROGRAM),
        "--cmd=partition",
        f"--model={model}",
        f"--o={model.with_suffix('.out')}",
        *arguments,
        "--err=--",
    ]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            env=_environment(libraries),
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


def _asked(vendor: str) -> tuple[str, list[str], str | None]:
    """The newest processor of a vendor that the package knows, with what the package gives the program for
    it, and the place of the vendor's libraries if they are installed.

    The package's own backend says so, which hands all that to what it takes for its compiler.
    """
    types = import_module(f"{_PACKAGE}.aot.core.aot_types")
    components = import_module(f"{_PACKAGE}.aot.core.components")
    target = import_module(f"{_PACKAGE}.aot.vendors.{vendor}.target")
    module = import_module(f"{_PACKAGE}.aot.vendors.{vendor}.{vendor}_backend")
    processor: str = [one.value for one in target.SocModel if one.value != "ALL"][-1]
    found: list[Any] = list(vars(module).values())
    kinds: list[Any] = [one for one in found if isinstance(one, type) and issubclass(one, types.Backend)]
    (kind,) = kinds

    class Told(components.ApplyPluginT):  # type: ignore[name-defined]
        """Gives back what a compiler would be called with."""

        def __call__(
            self,
            given: object,
            made: object,
            maker: str,
            soc: str,
            sdk_libs_path: str | None = None,
            **options: object,
        ) -> tuple[list[str], str | None]:
            words = {"soc_manufacturer": maker, "soc_model": soc, **options}
            return [f"--{name}={value}" for name, value in words.items()], sdk_libs_path

    backend = kind.create({"backend_id": kind.id(), "soc_model": processor})
    arguments, libraries = backend.call_component(None, None, Told())
    return processor, arguments, libraries


def _environment(libraries: str | None) -> dict[str, str]:
    """The environment in which a plugin finds its vendor's libraries."""
    places = os.pathsep.join(filter(None, (libraries, os.environ.get("LD_LIBRARY_PATH"))))
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    return {**kept, "LD_LIBRARY_PATH": places}


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
