"""The generator of checkpoints, which stands with the tests, for scripts that are run by their path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: The root goes first: folders of tests are called as the packages that they test.
PATHS = [str(ROOT), str(ROOT / "tests")]
# whoever imports this module may import ``checkpoints`` afterwards
sys.path += PATHS


def generate(directory: Path, variant: str, *options: str) -> None:
    """Write a checkpoint into ``directory`` in a process of its own; its standard output is dropped.

    A child's peak memory includes what its parent had when it began, so that a script that measures children
    does not generate in its own process. Raises ``CalledProcessError`` if it fails.
    """
    paths = [*PATHS, *filter(None, [os.environ.get("PYTHONPATH")])]
    subprocess.run(
        [sys.executable, "-m", "checkpoints.generate", "--variant", variant, *options, str(directory)],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
