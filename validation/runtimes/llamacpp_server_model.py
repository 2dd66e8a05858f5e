"""Child process of ``llamacpp_server``: llama.cpp's server, asked for prompts of chats.

The server of the wheel ``xllamacpp`` runs in this process and listens on a free port of this machine. A key
that nobody else knows keeps others out.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Mapping
from http.client import HTTPConnection
from typing import Any, Final
from urllib.parse import urlsplit

from converter.system.bounds import LOADING_MEMORY, bounded
from converter.system.child import serve
from converter.system.progress import StageProgress

#: What loading and all prompts may take; before, transformers has run the template within narrower bounds.
_SECONDS: Final = 60
_ENDPOINT: Final = "/apply-template"
_CONTEXT: Final = 64


def render(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    """The prompts of ``chats``, bodies of requests to ``/apply-template``, by the templates of ``model``.

    There is ``{"text"}`` for each, or ``{"error"}``, a line. It is the same for all where the server does not
    start.
    """
    print("rendering the file's chat template", file=sys.stderr, flush=True)  # told if the process ends
    with bounded(_SECONDS, LOADING_MEMORY):
        key = secrets.token_hex()
        try:
            server = _start(request["model"], key)
        except RuntimeError as error:
            return {
                "prompts": [{"error": f"the server does not take the template: {_line(str(error))}"}]
                * len(request["chats"])
            }
        address = urlsplit(server.listening_address)
        connection = HTTPConnection(str(address.hostname), address.port, timeout=_SECONDS)
        prompts = []
        for chat in request["chats"]:
            prompts.append(_ask(connection, key, chat))
            progress(len(prompts), len(request["chats"]))
        connection.close()
        del server  # it ends here, within the bounds
    return {"prompts": prompts}


def _start(model: str, key: str) -> Any:
    """The server, which has loaded ``model`` then. Raises ``RuntimeError`` if it does not start."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = model
    settings.n_ctx = settings.n_batch = settings.n_ubatch = _CONTEXT
    settings.n_parallel = settings.n_threads_http = 1
    settings.n_gpu_layers = settings.cache_ram_mib = settings.port = 0
    settings.warmup = settings.fit_params = settings.ui = False
    settings.use_jinja = True
    settings.api_keys = [key]
    settings.verbosity = 1
    return xllamacpp.Server(settings)


def _ask(connection: HTTPConnection, key: str, chat: Mapping[str, Any]) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("POST", _ENDPOINT, json.dumps(chat), headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    if "prompt" in answer:
        return {"text": str(answer["prompt"])}
    return {"error": f"the chat template fails: {_line(str(answer['error']['message']))}"}


def _line(message: str) -> str:
    return " ".join(message.split()) or "it does not say why"


if __name__ == "__main__":
    serve(render)
