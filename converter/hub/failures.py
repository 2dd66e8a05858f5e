"""What a failure of the Hub means to its user, in one line.

Nothing that a server wrote is repeated: it could hold control characters, or the token that it was sent.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

from converter.errors import HubError
from converter.hub.connection import Connection, SlowAnswerError, http_library
from converter.names import PUBLISHED_SIZES, Source, printable

_ADDRESSES = "HF_ENDPOINT and HTTPS_PROXY"
_LOGIN = "set HF_TOKEN or run `hf auth login`"


def explain(error: Exception, source: Source, connection: Connection) -> HubError | None:
    """The HubError to raise instead of `error`; None when it is not about the Hub or the network."""
    from huggingface_hub import errors

    if isinstance(error, HubError):
        return error
    if isinstance(error, errors.GatedRepoError):
        return HubError(_gated(source, connection))
    if isinstance(error, errors.RevisionNotFoundError):
        page = f"{_page(source, connection)}/commits/main"
        return HubError(f"{source.repo} has no branch, tag or commit {source.revision or 'main'}: see {page}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(_not_found(source, connection))
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return HubError(_absent_file(source, connection))
    if isinstance(error, errors.HfHubHTTPError):
        return HubError(_status(error.response, source, connection))
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(f"HF_HUB_OFFLINE forbids to ask {connection.address}: unset it, or use --offline")
    reason = _network(error)
    return HubError(f"cannot reach {connection.address} ({reason})") if reason else None


def _not_found(source: Source, connection: Connection) -> str:
    account = "" if connection.token else f" (or it is private: {_LOGIN})"
    revision = f" with a branch, tag or commit {source.revision}" if source.revision else ""
    text = f"{connection.address} has no repository {source.repo}{revision}{account}"
    if source.alias is None:
        return f"{text}, and there is no local directory of this name"
    sizes = ", ".join(PUBLISHED_SIZES)
    return (
        f"{text}; published sizes: {sizes}; if this model is published elsewhere, name it: "
        f"qatconvert models add {source.alias} OWNER/NAME"
    )


def _absent_file(source: Source, connection: Connection) -> str:
    return f"{source.repo} lists a file that {connection.address} does not have: try again later"


def _gated(source: Source, connection: Connection) -> str:
    page = _page(source, connection)
    if connection.token is None:
        return f"{source.repo} is gated: accept its licence at {page} and log in ({_LOGIN})"
    return (
        f"{source.repo} is gated and your token has no access: accept its licence at {page} with the same "
        "account; a fine-grained token also needs the permission to read gated repositories"
    )


def _status(response: Any, source: Source, connection: Connection) -> str:
    status: int = response.status_code
    if status == HTTPStatus.NOT_FOUND and f"/api/models/{source.repo}" in response.request.url.path:
        return _not_found(source, connection)  # the Hub adds X-Error-Code, not every server does
    if status == HTTPStatus.NOT_FOUND:
        return _absent_file(source, connection)
    if status == HTTPStatus.UNAUTHORIZED and connection.token is None:
        return _not_found(source, connection)
    if status == HTTPStatus.UNAUTHORIZED:
        return f"{connection.address} rejects the token: renew it ({_LOGIN})"
    if status == HTTPStatus.FORBIDDEN:
        return f"{connection.address} denies this token or address: see {_page(source, connection)}"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return f"{connection.address} limits your requests: wait some minutes, or log in for more ({_LOGIN})"
    try:
        phrase = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    if status >= 500:
        return f"{connection.address} has an error of its own ({phrase}): try again later"
    return f"{connection.address} refuses the request for {source.repo} ({phrase})"


def _network(error: Exception) -> str | None:
    library = http_library()
    if isinstance(error, library.ConnectError):
        reason = re.sub(r"^\[Errno -?\d+\] ", "", printable(str(error)))
        return f"{reason}: check the network and HTTPS_PROXY"
    nonsense = (ValueError, TypeError, AttributeError, KeyError, RecursionError)
    reasons = (
        (SlowAnswerError, "it all but stopped sending: try again later"),
        (library.ProxyError, "the proxy refuses: check HTTPS_PROXY"),
        (library.ConnectTimeout, "no answer in time: check the network and HTTPS_PROXY"),
        (library.TimeoutException, "it stopped answering: try again later"),
        ((library.InvalidURL, library.UnsupportedProtocol), f"not an http address: check {_ADDRESSES}"),
        (library.TooManyRedirects, "it redirects in a circle: check HF_ENDPOINT"),
        (library.HTTPError, "the connection broke off: try again"),
        (nonsense, f"what answers does not speak the Hub's protocol: check {_ADDRESSES}"),
    )
    return next((reason for kinds, reason in reasons if isinstance(error, kinds)), None)


def _page(source: Source, connection: Connection) -> str:
    return f"{connection.address}/{source.repo}"
