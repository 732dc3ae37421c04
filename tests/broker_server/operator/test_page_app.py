"""The page's interface over HTTP, with a real server."""

import http.client
import json
import ssl
import threading

import msgspec
import pytest
from view_samples import DEVICE, ROUND, STATUS

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from broker_server.operator.page import app as pages
from broker_server.operator.page.server import PageUnavailable, serve, token_of
from broker_server.operator.questions import Questions
from broker_server.server.certificates import Certificates

pytestmark = pytest.mark.workstation
ACT = {"x-mas-edge": "page", "content-type": "application/json"}


class Client:
    """A browser's part: a host, a cookie, headers."""

    def __init__(self, stage, host="127.0.0.1", **options):
        self.stage, self.host, self.options, self.cookie = stage, host, options, ""

    def connection(self):
        if self.options:
            return http.client.HTTPSConnection("127.0.0.1", self.stage.port, timeout=30, **self.options)
        return http.client.HTTPConnection("127.0.0.1", self.stage.port, timeout=30)

    def ask(self, path, body=None, *, method=None, **headers):
        connection = self.connection()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Host": f"{self.host}:{self.stage.port}", "Cookie": self.cookie, **headers}
        connection.request(method or ("GET" if body is None else "POST"), path, data, given)
        answer = connection.getresponse()
        found = answer.read()
        self.headers = answer.headers
        connection.close()
        if answer.headers["content-type"] == "application/json":
            found = json.loads(found)
        return answer.status, found

    def log_in(self):
        status, _ = self.ask("/api/login", {"token": token_of(self.stage.state)}, **ACT)
        self.cookie = self.headers["set-cookie"].split(";")[0]
        return status


def test_page_answers_with_what_a_browser_holds_to(stage):
    client = Client(stage)
    for path in ("/", "/page.js", "/page.css", "/icon.svg", "/api/status", "/api/openapi.json", "/nothing"):
        client.ask(path)
        policy = client.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert client.headers["x-content-type-options"] == "nosniff"
        assert client.headers["cache-control"] == "no-store"
        assert "server" not in client.headers
    for name in ("page.html", "page.css", "page.js"):  # nothing from elsewhere, nothing that the policy would refuse
        text = (pages.FILES / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text
        assert "innerHTML" not in text
        assert ' style="' not in text
        assert "<script>" not in text


def test_page_of_this_machine_answers_to_its_names_alone(stage):
    assert Client(stage, "localhost").ask("/api/status")[0] == 200
    assert Client(stage, "[::1]").ask("/api/status")[0] == 200
    for host in ("evil.example", "", "localhost.evil.example", "127.0.0.1.evil.example"):
        assert Client(stage, host).ask("/api/status")[0] == 421


def test_views_as_json(stage):
    stage.status, stage.devices, stage.rounds = STATUS, [DEVICE], [ROUND]
    client = Client(stage)
    assert client.ask("/api/status")[1]["open"]["number"] == 3
    assert client.ask("/api/fleet?most=5")[1]["rows"][0]["name"] == "pi-07"
    assert client.ask("/api/fleet?after=pi-07")[1]["rows"] == []
    assert client.ask("/api/rounds")[1]["rows"][0]["train_loss"] == {"a": 1.0}
    assert client.ask("/api/events")[1]["rows"] == []
    assert client.ask("/api/affinity")[1]["values"][1] == [None, 0.1]
    for odd in ("/api/fleet?most=0", "/api/fleet?most=x", "/api/rounds?after=-2", "/api/status?more=1"):
        status, found = client.ask(odd)
        assert status == 400
        assert found["says"]


def test_interface_describes_itself(stage):
    stage.status, stage.devices, stage.rounds = STATUS, [DEVICE], [ROUND]
    _, found = Client(stage).ask("/api/openapi.json")
    for path, operations in found["paths"].items():
        for operation in operations.values():
            ((form, answer),) = operation["responses"]["200"]["content"].items()
            name = answer["schema"]["$ref"].rpartition("/")[2]
            described = set(found["components"]["schemas"][name]["properties"])
            if form == "text/event-stream":
                assert set(next(changes(stage))) == described - {"gone", "events"}, "left out where nothing is"
            elif "get" in operations:
                assert set(Client(stage).ask(path)[1]) == described
    assert {f"/api/{name}" for name in (*pages.VIEWS, "changes", "act")} == set(found["paths"])


def test_act_needs_a_login_and_a_header(stage):
    client = Client(stage)
    assert client.ask("/api/act", {"act": "pause"}, **ACT)[0] == 401
    assert client.ask("/api/session")[1] == {"may_read": True, "may_act": False}
    for body in ({"token": "wrong"}, {"token": 7}, b"{", b"[" * 5000, {}):
        assert client.ask("/api/login", body, **ACT)[0] in {400, 403}
    assert client.ask("/api/login", {"token": token_of(stage.state)})[0] == 400, "a form of another site has no header"
    assert client.log_in() == 200
    cookie = client.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.ask("/api/session")[1] == {"may_read": True, "may_act": True}
    assert client.ask("/api/act", {"act": "pause"})[0] == 400
    assert client.ask("/api/act", {"act": "burn"}, **ACT)[0] == 400
    assert client.ask("/api/act", {"act": "drop", "device": "../x"}, **ACT)[0] == 400
    assert client.ask("/api/act", b"x" * 5000, **ACT)[0] == 400
    assert stage.acts == []
    assert client.ask("/api/act", {"act": "drop", "device": "pi"}, **ACT) == (200, {"type": "done", "says": "done"})
    assert stage.acts == [("drop", "pi")]
    assert client.ask("/api/logout", {}, **ACT)[0] == 200
    assert client.ask("/api/act", {"act": "pause"}, **ACT)[0] == 401
    assert (stage.state / "page.token").stat().st_mode & 0o777 == 0o600


def test_page_for_others_is_by_tls_and_tells_nothing_without_a_login(make_stage, tmp_path):
    own = Certificates(tmp_path / "tls").server({"127.0.0.1"})
    stage = make_stage(is_local=False, certificate=(own.certificate, own.key))
    trusts = ssl.create_default_context(cadata=Certificates(tmp_path / "tls").ca_pem())
    client = Client(stage, "server.lan", context=trusts)
    assert client.ask("/")[0] == 200
    closed = ["/api/status", "/api/fleet", "/api/rounds", "/api/events", "/api/affinity", "/api/changes"]
    for path in [*closed, "/report/report.json"]:
        assert client.ask(path)[0] == 401
    assert client.log_in() == 200
    assert "secure" in client.headers["set-cookie"].lower()
    assert client.ask("/api/status")[0] == 200


def test_report_gives_its_files_and_no_others(stage):
    stage.report.mkdir()
    (stage.report / "models").mkdir()
    (stage.report / "report.html").write_text("<p>report</p>")
    (stage.report / "report.json").write_text("{}")
    (stage.report / "secret").write_text("no")
    (stage.report / "models" / "a+b.safetensors").write_bytes(b"weights")
    client = Client(stage)
    assert client.ask("/report/report.html") == (200, b"<p>report</p>")
    assert client.headers["content-security-policy"].startswith("sandbox")
    assert client.ask("/report/models/a%2Bb.safetensors") == (200, b"weights")
    assert client.headers["content-disposition"].startswith("attachment")
    for odd in ("secret", "../state/page.token", "..%2Fstate%2Fpage.token", "models", "/etc/passwd", "models/../x"):
        assert client.ask(f"/report/{odd}")[0] == 404


def changes(stage):
    """The changes that a viewer gets, one at a time."""
    connection = Client(stage).connection()
    connection.request("GET", "/api/changes", headers={"Host": "localhost"})
    answer = connection.getresponse()
    assert answer.headers["content-type"].startswith("text/event-stream")
    try:
        while line := answer.readline():
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
    finally:
        connection.close()


def test_viewer_gets_everything_and_then_what_has_changed(stage, monkeypatch):
    monkeypatch.setattr(pages, "POLL_S", 0.02)
    stage.status, stage.devices, stage.rounds = STATUS, [DEVICE], [ROUND]
    viewer = changes(stage)
    first = next(viewer)
    assert first["is_all"]
    assert [each["name"] for each in first["devices"]] == ["pi-07"]
    stage.devices = [msgspec.structs.replace(DEVICE, done=9)]
    while "devices" not in (found := next(viewer)):
        assert "rounds" not in found
    assert found["devices"][0]["done"] == 9
    later = next(changes(stage))
    assert later["is_all"]
    assert later["devices"][0]["done"] == 9


def test_viewer_that_does_not_keep_up_is_cut_off_and_others_are_not(stage, monkeypatch):
    monkeypatch.setattr(pages, "POLL_S", 0.001)
    monkeypatch.setattr(pages, "BEHIND", 2)
    stage.status = STATUS
    stage.devices = [msgspec.structs.replace(DEVICE, name=f"pi-{n}", why="x" * 5000) for n in range(500)]
    stalled = changes(stage)
    next(stalled)
    numbers = iter(range(10**6))
    flip = threading.Event()

    def change():
        while not flip.is_set():
            done = next(numbers)
            stage.devices = [msgspec.structs.replace(each, done=done) for each in stage.devices]

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    received = 0
    while received < 15:  # more than a viewer may be behind, and than buffers on the way hold
        for _ in changes(stage):  # as a browser does, it comes again if it was too slow itself
            received += 1
            if received == 15:
                break
    flip.set()
    thread.join()
    assert sum(1 for _ in stalled) < 50, "it ends"


def test_viewers_are_bounded(stage, monkeypatch):
    monkeypatch.setattr(pages, "VIEWERS", 1)
    viewer = changes(stage)
    next(viewer)
    assert Client(stage).ask("/api/changes", Host="localhost")[0] == 503


def test_page_at_a_port_that_is_taken(stage, tmp_path):
    with pytest.raises(PageUnavailable, match=f"127.0.0.1:{stage.port}.*--page"):
        serve(
            Questions(lambda: None), state=tmp_path, report=tmp_path, host="127.0.0.1", port=stage.port, is_local=True
        )
