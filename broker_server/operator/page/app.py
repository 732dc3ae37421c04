"""The page's HTTP interface, by Starlette: files, views as JSON, changes as server-sent events, acts.

Rules
- Answers come from questions to the server's loop; a viewer that does not keep up is cut off, and begins anew.
- Nothing from elsewhere is loaded, run, framed or sent (Content-Security-Policy). What devices have sent is text.
- An act needs a session, whose cookie no script reads and no other site sends, and a header that no form can set.
- A page of this machine alone answers to this machine's names alone, so that no other site's name leads to it.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import cast

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker_server.operator import messages as shown
from broker_server.operator.page.login import SESSION_S, Logins
from broker_server.operator.page.snapshot import KEPT_EVENTS, Change, Snapshot
from broker_server.operator.questions import Questions

POLL_S = 1.0
QUIET_S = 15.0
"""After so long without a change a viewer gets an empty line, so that one who has gone is noticed."""
VIEWERS = 32
BEHIND = 20
"""The changes that may wait for a viewer."""
BODY_BYTES = 4096
COOKIE = "mas_edge_session"
ACT_HEADER = "x-mas-edge"
FILES = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""The report is a file of its own, with its styles and pictures inside; nothing in it runs."""


class Page:
    """The page over a server's questions. `report` is the folder where the report goes."""

    def __init__(
        self,
        questions: Questions,
        logins: Logins,
        *,
        report: Path,
        hosts: frozenset[str] | None,
        is_tls: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`hosts` are the names that the page answers to; None for any."""
        self._questions = questions
        self._logins = logins
        self._report = report
        self._is_tls = is_tls
        self._clock = clock
        self._snapshot = Snapshot()
        self._viewers: set[asyncio.Queue[bytes | None]] = set()
        self._poller: asyncio.Task[None] | None = None
        routes = [
            # These hold nothing of a federation: anybody may have them.
            Route("/", _file("page.html", "text/html")),
            Route("/page.css", _file("page.css", "text/css")),
            Route("/page.js", _file("page.js", "text/javascript")),
            Route("/icon.svg", _file("icon.svg", "image/svg+xml")),
            Route("/api/session", self._session),
            Route("/api/login", self._login, methods=["POST"]),
            Route("/api/logout", self._logout, methods=["POST"]),
            Route("/api/act", self._act, methods=["POST"]),
            Route("/api/changes", self._changes),
            Route("/api/openapi.json", self._openapi),
            Route("/report/{name:path}", self._report_file),
            *(Route(f"/api/{name}", self._view(kind)) for name, kind in VIEWS.items()),
        ]
        self.app: ASGIApp = _Guard(Starlette(routes=routes), hosts)

    # Who may
    def _secret(self, request: Request) -> str:
        return str(request.cookies.get(COOKIE, ""))

    def _may_read(self, request: Request) -> bool:
        return self._logins.may_read(self._secret(request), self._clock())

    def _may_act(self, request: Request) -> bool:
        return self._logins.may_act(self._secret(request), self._clock())

    async def _session(self, request: Request) -> Response:
        return _json({"may_read": self._may_read(request), "may_act": self._may_act(request)})

    async def _login(self, request: Request) -> Response:
        given = await _body(request)
        token = given.get("token") if given is not None else None
        if ACT_HEADER not in request.headers or not isinstance(token, str):
            return _problem(400, 'a login is JSON: {"token": …}')
        secret = self._logins.begin(token, self._clock())
        if secret is None:
            return _problem(403, "that is not the token of page.token, or there were too many tries")
        response = _json({"may_read": True, "may_act": True})
        response.set_cookie(
            COOKIE, secret, max_age=int(SESSION_S), httponly=True, samesite="strict", secure=self._is_tls, path="/"
        )
        return response

    async def _logout(self, request: Request) -> Response:
        self._logins.end(self._secret(request))
        response = _json({"may_read": self._may_read(request), "may_act": False})
        response.delete_cookie(COOKIE, path="/")
        return response

    # Views
    def _view(self, kind: type[msgspec.Struct]) -> Callable[[Request], object]:
        async def answer(request: Request) -> Response:
            if not self._may_read(request):
                return _problem(401, "log in first")
            try:
                asked = msgspec.convert(dict(request.query_params), kind, strict=False)
            except msgspec.ValidationError as exc:
                return _problem(400, str(exc))
            return await self._answered(cast("shown.Request", asked))

        return answer

    async def _act(self, request: Request) -> Response:
        if not self._may_act(request):
            return _problem(401, "log in first: acts need the token")
        given = await _body(request)
        if ACT_HEADER not in request.headers or given is None:
            return _problem(400, 'an act is JSON: {"act": …}')
        try:
            act = msgspec.convert({"type": "act", **given}, shown.Act)
        except msgspec.ValidationError as exc:
            return _problem(400, str(exc))
        return await self._answered(act)

    async def _answered(self, request: shown.Request) -> Response:
        answer = await asyncio.wrap_future(self._questions.ask(request))
        return _json(answer, 409 if isinstance(answer, shown.NotDone) else 200)

    async def _report_file(self, request: Request) -> Response:
        if not self._may_read(request):
            return _problem(401, "log in first")
        name = request.path_params["name"]
        found = {str(each.relative_to(self._report)): each for each in self._report_files()}.get(name)
        if found is None:
            return _problem(404, "there is no such file in the report")
        if name == "report.html":
            return FileResponse(found, headers={"Content-Security-Policy": REPORT_POLICY})
        return FileResponse(found, filename=found.name)

    def _report_files(self) -> list[Path]:
        shapes = ("report.html", "report.json", "models/*.safetensors", "models/*.onnx")
        return [each for shape in shapes for each in self._report.glob(shape) if each.is_file()]

    async def _openapi(self, _request: Request) -> Response:
        return _json(openapi())

    # Changes
    async def _changes(self, request: Request) -> Response:
        if not self._may_read(request):
            return _problem(401, "log in first")
        if len(self._viewers) >= VIEWERS:
            return _problem(503, f"{VIEWERS} pages are open already: close some")
        return StreamingResponse(self._stream(request), media_type="text/event-stream")

    async def _stream(self, request: Request) -> AsyncIterator[bytes]:
        waiting: asyncio.Queue[bytes | None] = asyncio.Queue(BEHIND)
        if self._poller is None:
            self._poller = asyncio.get_running_loop().create_task(self._poll())
        if (everything := self._snapshot.all) is not None:
            waiting.put_nowait(_event(everything))
        self._viewers.add(waiting)
        try:
            yield b": changes\n\n"
            while self._may_read(request):
                try:
                    data = await asyncio.wait_for(waiting.get(), QUIET_S)
                except asyncio.TimeoutError:
                    data = b":\n\n"
                if data is None:  # too far behind: the browser connects again, and gets everything
                    return
                yield data
        finally:
            self._viewers.discard(waiting)

    async def _poll(self) -> None:
        """Ask for the views once in POLL_S while somebody watches, and pass on what has changed."""
        try:
            while self._viewers:
                is_first = self._snapshot.all is None
                change = await self._changed()
                if change is None:
                    break
                everything = self._snapshot.all
                data = _event(everything if is_first and everything is not None else change)
                for viewer in list(self._viewers):
                    self._pass_on(viewer, data)
                await asyncio.sleep(POLL_S)
        finally:
            self._poller = None
            self._snapshot = Snapshot()  # who comes later gets what is true then

    def _pass_on(self, viewer: "asyncio.Queue[bytes | None]", data: bytes) -> None:
        if viewer.full():
            self._viewers.discard(viewer)
            while not viewer.empty():
                viewer.get_nowait()
            viewer.put_nowait(None)
        else:
            viewer.put_nowait(data)

    async def _changed(self) -> msgspec.Struct | None:
        """Return what has changed; None where the server ends."""
        status = await self._ask(shown.AskStatus())
        rows: list[shown.DeviceView] = []
        while True:
            fleet = await self._ask(shown.AskFleet(after=rows[-1].name if rows else ""))
            if not isinstance(fleet, shown.FleetView):
                return None
            rows += fleet.rows
            if not fleet.rows or len(rows) >= fleet.total:
                break
        rounds = await self._ask(shown.AskRounds(after=self._snapshot.last_round, most=shown.MAX_ROWS))
        events = await self._ask(shown.AskEvents(after=self._snapshot.last_event, most=KEPT_EVENTS))
        affinity = await self._ask(shown.AskAffinity())
        match status, rounds, events, affinity:
            case shown.FederationView(), shown.Rounds(), shown.Events(), shown.AffinityView():
                return self._snapshot.update(status, rows, rounds.rows, events.rows, affinity)
        return None

    async def _ask(self, request: shown.Request) -> shown.Answer:
        return await asyncio.wrap_future(self._questions.ask(request))


VIEWS: Mapping[str, type[msgspec.Struct]] = {
    "status": shown.AskStatus,
    "fleet": shown.AskFleet,
    "rounds": shown.AskRounds,
    "events": shown.AskEvents,
    "affinity": shown.AskAffinity,
}
ANSWERS: Mapping[str, type[msgspec.Struct]] = {
    "status": shown.FederationView,
    "fleet": shown.FleetView,
    "rounds": shown.Rounds,
    "events": shown.Events,
    "affinity": shown.AffinityView,
}


def openapi() -> dict[str, object]:
    """Return the description of the interface (OpenAPI 3.1), from the structs that it sends."""
    kinds = [*ANSWERS.values(), Change, shown.Act, shown.Done, shown.NotDone]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    by_kind = dict(zip(kinds, schemas, strict=True))

    def answer(kind: type[msgspec.Struct], text: str, form: str = "application/json") -> dict[str, object]:
        return {"description": text, "content": {form: {"schema": by_kind[kind]}}}

    paths: dict[str, object] = {}
    for name, kind in VIEWS.items():
        about = (ANSWERS[name].__doc__ or "").split("\n")[0]
        parameters = [
            {"name": field.name, "in": "query", "required": False, "schema": msgspec.json.schema(field.type)}
            for field in msgspec.structs.fields(kind)
        ]
        paths[f"/api/{name}"] = {"get": {"parameters": parameters, "responses": {"200": answer(ANSWERS[name], about)}}}
    changes = answer(Change, "each event: what has changed, the first time everything", "text/event-stream")
    paths["/api/changes"] = {"get": {"responses": {"200": changes}}}
    act = {
        "requestBody": {"content": {"application/json": {"schema": by_kind[shown.Act]}}},
        "parameters": [{"name": ACT_HEADER, "in": "header", "required": True, "schema": {"type": "string"}}],
        "responses": {"200": answer(shown.Done, "done"), "409": answer(shown.NotDone, "not done")},
    }
    paths["/api/act"] = {"post": act}
    return {
        "openapi": "3.1.0",
        "info": {"title": "MAS Edge", "version": "1"},
        "paths": paths,
        "components": {"schemas": components},
    }


def _file(name: str, kind: str) -> Callable[[Request], Response]:
    data = (FILES / name).read_bytes()

    def answer(_request: Request) -> Response:
        return Response(data, media_type=f"{kind}; charset=utf-8")

    return answer


class _Guard:
    """Puts the headers on every answer, and refuses what is for another host."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(each for each in more if each[0] not in names)]
            await send(message)

        if self._hosts is not None and _host(scope) not in self._hosts:
            await _problem(421, "this page is for this machine alone: open it as localhost")(scope, receive, guarded)
            return
        with contextlib.suppress(asyncio.CancelledError):
            await self._app(scope, receive, guarded)


def _host(scope: Scope) -> str:
    given: str = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
    return given.rpartition(":")[0] if not given.endswith("]") and ":" in given else given


def _event(change: msgspec.Struct) -> bytes:
    return b"data: " + msgspec.json.encode(change) + b"\n\n"


def _json(found: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(found), status, media_type="application/json")


def _problem(status: int, says: str) -> Response:
    return _json({"says": says}, status)


async def _body(request: Request) -> dict[str, object] | None:
    """Return a request's JSON object, if it is one and small."""
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > BODY_BYTES:
            return None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
