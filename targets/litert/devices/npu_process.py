"""The child process that compiles a bundle for a neural processor; files that it makes go below the scratch
directory in which it runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from litert_torch.generative.export_hf.experimental.litert_lm_npu_compiler import litert_lm_npu_compiler

from converter.errors import TargetError
from converter.system.child import serve
from converter.system.progress import StageProgress

#: How ``apply_plugin`` names the file with what the vendor's compiler printed (ai-edge-litert 2.3.0).
_ERROR_FILE: Final = re.compile(r"See (\S+\.error) for details")
#: What stands before the cause in a line of that file.
_MARKS: Final = re.compile(r"^(?:└\s*|ERROR:\s*|\[[^\]]*:\d+\]\s*)+")
_LOG_BYTES: Final = 1 << 20


def compile_for_npu(request: dict[str, Any], progress: StageProgress) -> dict[str, str]:
    """Answer one request; raises ``TargetError`` with the cause that the compiler's log tells."""
    try:
        litert_lm_npu_compiler.compile_litertlm(
            request["bundle"],
            request["compiled"],
            request["backend"],
            request["soc"],
            intermediate_dir=request["directory"],
        )
    except (RuntimeError, ValueError) as error:
        told = _told(str(error))
        if told is None:
            raise
        raise TargetError(told) from error
    return {}


def _told(message: str) -> str | None:
    """The cause in the file that an error names; the file goes to the log."""
    found = _ERROR_FILE.search(message)
    path = Path(found[1]) if found else None
    if path is None or not path.is_file():
        return None
    with path.open("rb") as stream:
        log = stream.read(_LOG_BYTES).decode("utf-8", "replace")
    print(log, flush=True)
    lines = [line.strip() for line in log.splitlines()]
    causes = [_MARKS.sub("", line) for line in lines if _MARKS.match(line)]
    return next((cause for cause in reversed(causes) if cause), None)


if __name__ == "__main__":
    serve(compile_for_npu)
