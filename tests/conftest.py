"""Fixtures of every room: checkpoints of random weights, made once a session, and the shipped one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

# Set before huggingface_hub is imported anywhere: no test reaches the network.
os.environ["HF_HUB_OFFLINE"] = "1"

from checkpoints.generate import write_checkpoint
from checkpoints.mobile import write_mobile
from converter.checkpoint.opened import open_checkpoint
from converter.demo import DEMO
from converter.pipeline import manifest
from converter.pipeline.conversion import Conversion, convert
from support.forked import forked_workers, no_processes
from support.forms import MAKERS, VARIANT
from support.outside import register
from support.schemas import check
from targets.target import find_target
from validation.report import files

CheckpointFactory = Callable[..., Path]
BundleFactory = Callable[..., Path]
#: Fixtures that export graphs to LiteRT for whichever test asks first, which takes most of a minute.
_SLOW_FIXTURES = {"exported", "litert_bundle", "nine", "one_row", "outputs"}


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Who may have to wait for a slow fixture is slow: the order is random. But files with slow tests come
    first, so that no process is left with a long one when the others have nothing more to do."""
    for item in items:
        if isinstance(item, pytest.Function) and _SLOW_FIXTURES & set(item.fixturenames):
            item.add_marker("slow")
    yield
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--no-processes`` is for ``make check``."""
    parser.addoption("--no-processes", action="store_true", help="skip each test that starts a process")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how to have the same order again; without a header, pytest-randomly does not."""
    if (seed := config.getoption("randomly_seed", None)) is not None:
        terminalreporter.write_line(f"random order: --randomly-seed={seed}")


@pytest.fixture(scope="session")
def checkpoint_factory(tmp_path_factory: pytest.TempPathFactory) -> CheckpointFactory:
    """``checkpoint_factory(variant, scheme="max7", **options)`` gives a directory that nobody may change.

    The options are those of ``checkpoints.generate.write_checkpoint``; equal calls share a directory.
    """
    made: dict[str, Path] = {}

    def make(variant: str, scheme: str = "max7", **options: object) -> Path:
        key = repr((variant, scheme, sorted(options.items())))
        if key not in made:
            directory = tmp_path_factory.mktemp(f"{variant}-{scheme}")
            made[key] = write_checkpoint(directory, variant, scheme, **options)  # type: ignore[arg-type]
        return made[key]

    return make


@pytest.fixture(scope="session")
def mobile_factory(
    checkpoint_factory: CheckpointFactory, tmp_path_factory: pytest.TempPathFactory
) -> CheckpointFactory:
    """``mobile_factory(variant, text=..., **options)`` gives a directory that nobody may change: a checkpoint
    in Gemma's mobile form, with the options of ``checkpoints.mobile.write_mobile`` and keys of the text part.
    """
    made: dict[str, Path] = {}

    def make(variant: str, text: Mapping[str, object] | None = None, **options: Any) -> Path:
        key = repr((variant, text, sorted(options.items())))
        if key not in made:
            source = checkpoint_factory(variant, text=text) if text else checkpoint_factory(variant)
            made[key] = write_mobile(source, tmp_path_factory.mktemp(f"{variant}-mobile") / "m", **options)
        return made[key]

    return make


@pytest.fixture(scope="module")
def form_factory(
    checkpoint_factory: CheckpointFactory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Path]]:
    """``form_factory(name)`` gives a checkpoint of random weights in a stored form, one that only
    ``tests/outside`` brings too: it is registered while tests of the module run."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            directory = tmp_path_factory.mktemp(name)
            made[name] = MAKERS[name](checkpoint_factory(VARIANT), directory)
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        packages = tmp_path_factory.mktemp("forms")
        register(packages)
        patch.syspath_prepend(packages)
        yield make


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    """The shipped checkpoint ``gemma4-demo``."""
    return DEMO


@pytest.fixture(scope="session")
def demo_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a conversion of the demo to GGUF leaves, without a proof; nobody may change it."""
    output = tmp_path_factory.mktemp("demo-output") / "out"
    convert(Conversion("gemma4-demo", ["gguf"], output, validation=None), warn=lambda line: None)
    return output


@pytest.fixture(scope="session", autouse=True)
def documents() -> Iterator[None]:
    """Every report and manifest that this process writes is as its schema says."""

    def checked(write: Callable[..., None], name: str) -> Callable[..., None]:
        def write_checked(place: Path, content: Mapping[str, Any]) -> None:
            check(name, content)
            write(place, content)

        return write_checked

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((files, "report"), (manifest, "manifest")):
            patch.setattr(module, "write", checked(module.write, name))
        yield


@pytest.fixture(scope="session", autouse=True)
def workers(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[None]:
    """What worker processes import is imported once (``support.forked``), and every graph for LiteRT is
    exported once a session. With ``--no-processes`` there are none: a test that starts one is skipped."""
    if pytestconfig.getoption("no_processes"):
        with no_processes():
            yield
        return
    own = tmp_path_factory.getbasetemp()
    graphs = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "graphs"
    graphs.mkdir(exist_ok=True)
    with forked_workers(graphs):
        yield


@pytest.fixture(scope="session")
def litert_bundle(
    checkpoint_factory: CheckpointFactory, tmp_path_factory: pytest.TempPathFactory
) -> BundleFactory:
    """``litert_bundle(variant, scheme="max7", layout="hub", **options)`` gives a ``.litertlm`` file that
    nobody may change.

    Its checkpoint is ``checkpoint_factory(variant, scheme, layout=layout)``, or the shipped one for
    ``"demo"``; the options are the target's (``prefill_lengths``, ``context_length``,
    ``externalize_embedder``). Equal calls share the file: each other call takes a minute.
    """
    made: dict[str, Path] = {}

    def make(variant: str, scheme: str = "max7", layout: str = "hub", **options: object) -> Path:
        key = repr((variant, scheme, layout, sorted(options.items())))
        if key not in made:
            other = {} if layout == "hub" else {"layout": layout}
            model = DEMO if variant == "demo" else checkpoint_factory(variant, scheme, **other)
            checkpoint, target = open_checkpoint(model), find_target("litert")
            plan = target.plan(checkpoint, "model", options)
            directory = tmp_path_factory.mktemp(f"{variant}-{scheme}-litert")
            target.write(checkpoint, plan, directory)
            made[key] = directory / plan.artifacts[0]
        return made[key]

    return make
