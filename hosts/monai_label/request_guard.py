"""Stands before MONAI Label's server: a request that is not allowed never reaches it, and none leaves a file or a path.

:class:`RequestGuard` is ASGI middleware. Of each request it

- checks where it comes from, its size, and all that it holds (``requests_allowed.py``), and hands on what it checked;
- gives it a temporary folder of its own, which is removed whatever happens: MONAI Label writes uploads and results
  there, and forgets those of requests that fail;
- takes the server's paths out of the answer, and makes an error of one line of whatever goes wrong.

Requests are handled one after the other, as MONAI Label does anyway; trainings run in processes of their own.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import IO, Any
from urllib.parse import parse_qsl, urlsplit

from request_checks import MAX_HEADER, check_inline, without_paths
from requests_allowed import Route, find_route
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from istn_monai.workflow.host_requests import FORBIDDEN, RequestError

logger = logging.getLogger(__name__)
MAX_JSON, CHUNK = 1 << 20, 1 << 20
TOO_LARGE, WRONG_TYPE = 413, 415
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
Message = dict[str, Any]


def check_origin(headers: Headers, origins: Sequence[str]) -> None:
    """RequestError for what a browser sends for a page of another server, or of a name that was turned to this one."""
    host = headers.get("host", "localhost")
    if not is_own(urlsplit(f"//{host}").hostname or "") and host not in [urlsplit(page).netloc for page in origins]:
        raise RequestError(f"nothing is served as {host[:100]!r}, unless --conf cors_origins names it", FORBIDDEN)
    origin = headers.get("origin")
    if origin not in (None, *origins) and urlsplit(origin).netloc != host:
        text = f"pages of {origin[:100]!r} are not served, unless the server's --conf cors_origins names it"
        raise RequestError(text, FORBIDDEN)


@cache
def own_names() -> set[str]:
    """What this machine calls itself."""
    return {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}


def is_own(host: str) -> bool:
    """Whether a name is surely this machine's: an address, or one of its own names; any other name may lead here."""
    try:
        return host in own_names() or bool(ipaddress.ip_address(host))
    except ValueError:
        return False


async def receive_body(receive: Callable, headers: Headers, limit: int, body: IO[bytes]) -> None:
    """Writes a request's body to a file; RequestError, 413, as soon as it says that it is too large, or is."""
    message = f"the request is larger than {limit / 2**20:g} MB; the server's --conf max_upload_mb limits uploads"
    size, more = int(headers.get("content-length") or 0), True
    if size > limit:
        raise RequestError(message, TOO_LARGE)
    size = 0
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ConnectionAbortedError("the client went away")
        size += len(event.get("body", b""))
        if size > limit:
            raise RequestError(message, TOO_LARGE)
        body.write(event.get("body", b""))
        more = event.get("more_body", False)


def replay(body: IO[bytes]) -> Callable:
    """An ASGI ``receive`` that gives a body from a file, from its beginning on, and then waits for ever."""
    body.seek(0)
    done = False

    async def receive() -> Message:
        nonlocal done
        if done:
            await asyncio.Future()
        chunk = body.read(CHUNK)
        done = len(chunk) < CHUNK
        return {"type": "http.request", "body": chunk, "more_body": not done}

    return receive


@contextmanager
def temporary_folder() -> Iterator[None]:
    """All that Python's ``tempfile`` makes meanwhile is in one folder, which is gone afterwards."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="istn_request_", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


class Reply:
    """An answer on its way, kept until it is whole."""

    def __init__(self, body: IO[bytes]) -> None:
        self.body = body
        self.start: Message = {}

    async def __call__(self, message: Message) -> None:
        """The ASGI ``send`` that fills it."""
        if message["type"] == "http.response.start":
            self.start = dict(message)
        elif message["type"] == "http.response.body":
            self.body.write(message.get("body", b""))

    def clean(self, roots: Sequence[str]) -> None:
        """Takes the server's paths out of an answer in JSON."""
        headers = [(name.lower(), value) for name, value in self.start["headers"]]
        if not dict(headers).get(b"content-type", b"").startswith(b"application/json"):
            return
        self.body.seek(0)
        content = self.body.read()
        if content:
            content = json.dumps(without_paths(json.loads(content), roots)).encode()
        self.body.seek(0)
        self.body.truncate()
        self.body.write(content)
        kept = [header for header in headers if header[0] != b"content-length"]
        self.start["headers"] = [*kept, (b"content-length", str(len(content)).encode())]

    async def send(self, send: Callable) -> None:
        """Sends it."""
        await send(self.start)
        self.body.seek(0)
        while chunk := self.body.read(CHUNK):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class RequestGuard:
    """ASGI middleware that lets through what is allowed; see the module.

    Args:
        app: MONAI Label's.
        routes: what is allowed.
        explain: the HTTP status and the text of an error.
        origins: of web pages that may use the server, besides its own.
        roots: the server's folders, which no answer may name.
        limit: of a request with uploads, in bytes.
        prefix: of all paths.
    """

    def __init__(
        self,
        app: Callable,
        routes: Sequence[Route],
        explain: Callable[[Exception], tuple[int, str]],
        origins: Sequence[str] = (),
        roots: Sequence[str] = (),
        limit: int = 1 << 30,
        prefix: str = "",
    ) -> None:
        self.app = app
        self.routes = routes
        self.explain = explain
        self.origins = origins
        self.roots = roots
        self.limit = limit
        self.prefix = prefix
        self.turn = asyncio.Lock()

    async def __call__(self, scope: Message, receive: Callable, send: Callable) -> None:
        """One connection."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None  # MONAI Label has no web sockets
        with tempfile.SpooledTemporaryFile(CHUNK) as body, tempfile.SpooledTemporaryFile(CHUNK) as kept:
            try:
                reply = await self.answer(scope, receive, body, kept)
            except ConnectionAbortedError:
                return None  # nobody is there to be told
            except HTTPException as error:
                return await self.answer_error(scope, receive, send, error.status_code, str(error.detail))
            except Exception as error:
                return await self.answer_error(scope, receive, send, *self.explain(error))
            return await reply.send(send)

    async def answer(self, scope: Message, receive: Callable, body: IO[bytes], kept: IO[bytes]) -> Reply:
        """MONAI Label's answer to an allowed request, without paths; ``body`` and ``kept`` hold what comes and goes."""
        scope = await self.checked(scope, receive, body)
        reply = Reply(kept)
        async with self.turn:
            with temporary_folder():
                await self.app(scope, replay(body), reply)
        reply.clean(self.roots)
        return reply

    async def answer_error(self, scope: Message, receive: Callable, send: Callable, status: int, text: str) -> None:
        """Answers with an error."""
        response = JSONResponse({"detail": without_paths(text, self.roots)}, status)
        await response(scope, receive, send)

    async def checked(self, scope: Message, receive: Callable, body: IO[bytes]) -> Message:
        """Receives a request into ``body`` and checks all of it; the scope of what is handed on."""
        headers = Headers(scope=scope)
        check_origin(headers, self.origins)
        path = scope["path"].removeprefix(scope.get("root_path", "")).removeprefix(self.prefix)
        route = find_route(self.routes, scope["method"], path)
        route.check_query(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if kind and (route.form or route.files):
            if kind not in FORMS:
                raise RequestError(f"a form is expected ({' or '.join(FORMS)}), got {kind[:50]!r}", WRONG_TYPE)
            await receive_body(receive, headers, self.limit if route.files else MAX_JSON, body)
            await check_form(route, scope, body)
            return handed_on(scope, body, headers["content-type"])
        if route.body is None:  # or no form was sent: whatever else was sent is not handed on
            return handed_on(scope, body, "")
        await receive_body(receive, headers, MAX_JSON, body)
        self.check_json(route, kind, body)
        return handed_on(scope, body, "application/json")

    @staticmethod
    def check_json(route: Route, kind: str, body: IO[bytes]) -> None:
        """Puts the JSON object in a file's place that was read of it: what was checked is what is handed on."""
        body.seek(0)
        content = body.read()
        if content and kind != "application/json":
            raise RequestError(f"JSON is expected (application/json), got {kind[:50]!r}", WRONG_TYPE)
        values = route.check_body(content)
        body.seek(0)
        body.truncate()
        body.write(json.dumps(values).encode())


def handed_on(scope: Message, body: IO[bytes], kind: str) -> Message:
    """The scope of a request whose body was checked: its headers say the size and the kind of that one."""
    old = (b"content-length", b"transfer-encoding", b"content-type")
    kept = [header for header in scope["headers"] if header[0].lower() not in old]
    size = (b"content-length", str(body.seek(0, 2)).encode())
    return scope | {"headers": [*kept, size, *([(b"content-type", kind.encode("latin-1"))] if kind else [])]}


async def check_form(route: Route, scope: Message, body: IO[bytes]) -> None:
    """RequestError unless a form in a file, its fields and its uploads, is allowed."""
    async with Request(scope, replay(body)).form() as form:
        items = form.multi_items()
        uploads = [(name, value) for name, value in items if isinstance(value, UploadFile)]
        fields = [(name, value) for name, value in items if isinstance(value, str)]
        route.check_form(fields, [(name, upload.filename or "") for name, upload in uploads])
        for name, upload in uploads:
            check_inline(await upload.read(MAX_HEADER), name)
