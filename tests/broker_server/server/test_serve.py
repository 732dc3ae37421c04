import json
import ssl
import threading
import time
import urllib.request

import pytest
from ports import free_port

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from broker_server.operator import messages as shown
from broker_server.operator.client import ControlClient, ServerNotRunning
from broker_server.server.certificates import TLS, Certificates
from broker_server.server.keys import load_or_create
from broker_server.server.serve import serve
from broker_server.server.state import read_url
from devices.cli.settings import ConfigInvalid

pytestmark = pytest.mark.workstation


@pytest.mark.slow
def test_serve_waits_for_its_bundle_and_runs_to_the_end(make_config, tmp_path, tiny_bundle, join, capsys):
    folder, _ = tiny_bundle
    state = tmp_path / "state"
    key = load_or_create(state)
    config = make_config(
        state=state, host="127.0.0.1", port=0, merged_rounds=1, probe_rounds=1, split_rounds=1, groups=2
    )
    served = []
    server = threading.Thread(target=lambda: served.append(serve(config, is_once=True, is_quiet=True)), daemon=True)
    server.start()
    until_s = time.monotonic() + 60
    while read_url(state) is None:
        assert time.monotonic() < until_s
        time.sleep(0.05)
    port = int(read_url(state).rpartition(":")[2])
    devices = [join(name, key, port, state) for name in "xy"]
    (folder / "graphs" / "encoder.0.forward.onnx").rename(tmp_path / "held.onnx")
    folder.rename(state / "bundle")
    time.sleep(1.5)  # the bundle is seen with a graph missing: it may still be on its way
    (tmp_path / "held.onnx").rename(state / "bundle" / "graphs" / "encoder.0.forward.onnx")
    server.join(timeout=120)
    assert served == [True]
    assert all(device.finished for device in devices)
    assert (state / "report" / "report.html").is_file()
    out = capsys.readouterr().out
    assert "no bundle" in out
    assert "missing from the bundle" in out
    assert "a device joins" in out
    assert "all rounds are done" in out


def test_serve_tasks_that_the_bundle_does_not_have(make_config, tmp_path, tiny_bundle):
    folder, _ = tiny_bundle
    with pytest.raises(ConfigInvalid, match="'z'"):
        serve(make_config(state=tmp_path / "s", port=0, bundle=folder, tasks=("z",)), is_quiet=True)


@pytest.mark.slow
def test_serve_shows_its_page_elsewhere_by_the_brokers_certificate(make_config, tmp_path):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    state, port = tmp_path / "state", free_port()
    given = Certificates(tmp_path).server({"127.0.0.1"})
    config = make_config(
        state=state, host="127.0.0.1", port=0, certificate=given.certificate, key=given.key, page=port,
        page_host="0.0.0.0",
    )  # fmt: skip
    served = []
    server = threading.Thread(target=lambda: served.append(serve(config, is_quiet=True)), daemon=True)
    server.start()
    until_s = time.monotonic() + 60
    while True:
        try:
            client = ControlClient(state)
            break
        except ServerNotRunning:
            assert time.monotonic() < until_s
            time.sleep(0.05)
    trusts = ssl.create_default_context(cadata=Certificates(tmp_path).ca_pem())
    with urllib.request.urlopen(f"https://127.0.0.1:{port}/api/session", context=trusts) as answer:
        assert json.load(answer) == {"may_read": False, "may_act": False}
    assert not (state / TLS).exists(), "no certificate is made that nobody is shown"
    assert isinstance(client.ask(shown.Act(act="stop")), shown.Done)
    client.close()
    server.join(timeout=60)
    assert served == [True]
