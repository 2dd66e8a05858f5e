"""Files of plain numbers, run by transformers, which reads safetensors and has the models."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from converter.checkpoint.excerpt import Excerpt
from converter.errors import CheckpointError, ValidationError
from converter.system.progress import StageProgress
from qatconvert_plain.options import RUNTIME
from qatconvert_plain.target import CONFIG, read
from targets.options import Option
from validation.reference.logits import Computation, Model, own_logits
from validation.reference.process import reference_worker
from validation.runners import AS_IT_IS, Runtime
from validation.text import Tokens


class Transformers:
    """The runner; see ``validation.runners.Runner``."""

    name = "transformers"
    extra = "reference"
    modules = ("torch", "transformers")
    libraries = ("safetensors", "torch", "transformers")
    engine = None
    text = None
    allowances: Mapping[str, float] = {}
    float16_gelu = False
    weights_held = 1
    stepwise = False

    options: Sequence[Option] = RUNTIME.options

    def __init__(self, megabytes: int | None = None) -> None:
        self.megabytes = megabytes

    def configured(self, options: Mapping[str, object]) -> Transformers:
        """The runner with a limit of memory for weights."""
        megabytes = options.get("plain_memory")
        return Transformers(megabytes if isinstance(megabytes, int) else None)

    def _settings(self) -> dict[str, object]:
        limit = {} if self.megabytes is None else {"plain_memory": self.megabytes}
        return {"rounded_activations": False, **limit}

    def logits(
        self,
        artifact: Path,
        sequences: Sequence[Sequence[int]],
        vocabulary: int,
        output: Path,
        progress: StageProgress,
        *,
        choice: Mapping[str, object] = AS_IT_IS,
        firsts: Sequence[int] | None = None,
    ) -> Runtime:
        """See the protocol."""
        try:
            _, metadata = read(artifact)
        except CheckpointError as error:
            raise ValidationError(str(error)) from error
        with tempfile.TemporaryDirectory() as name, reference_worker() as worker:
            (Path(name) / "config.json").write_text(metadata[CONFIG], "utf-8")
            (Path(name) / "model.safetensors").symlink_to(artifact.resolve())
            limit = None if self.megabytes is None else self.megabytes * 1_000_000
            own_logits(
                Model(Path(name), (), vocabulary),
                Tokens.of(sequences, firsts),
                Computation(worker, max_memory=limit),
                output,
                progress=progress,
            )
        return Runtime(self.name, version("transformers"), self._settings())

    def unrounded_bytes(self, artifact: Path, excerpt: Excerpt | None = None) -> int:
        """None: the artifact itself is run."""
        return 0

    def unrounded(
        self, artifact: Path, directory: Path, progress: StageProgress, excerpt: Excerpt | None = None
    ) -> tuple[Path, Mapping[str, object]]:
        """The artifact itself, of which no excerpt is made."""
        if excerpt is not None:
            raise ValidationError("no excerpts are made of plain numbers")
        return artifact, AS_IT_IS


runner = Transformers()
