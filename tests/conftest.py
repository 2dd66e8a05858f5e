"""Fixtures of every room: checkpoints of random weights, made once a session, and the shipped one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Set before huggingface_hub is imported anywhere: no test reaches the network.
os.environ["HF_HUB_OFFLINE"] = "1"

from converter.demo import DEMO
from converter.demo.generate import write_checkpoint

CheckpointFactory = Callable[..., Path]
BundleFactory = Callable[..., Path]


@pytest.fixture(scope="session")
def checkpoint_factory(tmp_path_factory: pytest.TempPathFactory) -> CheckpointFactory:
    """``checkpoint_factory(variant, scheme="max7", **options)`` gives a directory that nobody may change.

    The options are those of ``converter.demo.generate.write_checkpoint``; equal calls share a directory.
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
def demo_checkpoint() -> Path:
    """The shipped checkpoint ``gemma4-demo``."""
    return DEMO


@pytest.fixture(scope="session")
def litert_bundle(
    checkpoint_factory: CheckpointFactory, tmp_path_factory: pytest.TempPathFactory
) -> BundleFactory:
    """``litert_bundle(variant, scheme="max7", **options)`` gives a ``.litertlm`` file that nobody may change.

    Its checkpoint is ``checkpoint_factory(variant, scheme)``, or the shipped one for ``"demo"``; the options
    are the target's (``prefill_lengths``, ``context_length``, ``externalize_embedder``). Equal calls share
    the file: each other call takes a minute.
    """
    made: dict[str, Path] = {}

    def make(variant: str, scheme: str = "max7", **options: object) -> Path:
        import litert_bundles

        key = repr((variant, scheme, sorted(options.items())))
        if key not in made:
            model = DEMO if variant == "demo" else checkpoint_factory(variant, scheme)
            directory = tmp_path_factory.mktemp(f"{variant}-{scheme}-litert")
            made[key] = litert_bundles.write(model, directory, **options)  # type: ignore[arg-type]
        return made[key]

    return make
