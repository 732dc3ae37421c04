"""The page in a real browser, over a server's answers in each state."""

import contextlib
import os
from pathlib import Path

import msgspec
import pytest
from browser import CHROMIUM, Browser
from view_samples import BARE, DEVICE, OPEN, ROUND, STATUS

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from broker_server.operator import messages as shown
from broker_server.operator.page import server as pages

pytestmark = [
    pytest.mark.workstation,
    pytest.mark.browser,
    pytest.mark.process,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
changed = msgspec.structs.replace


@pytest.fixture
def browser(tmp_path):
    with contextlib.closing(Browser(tmp_path / "browser")) as made:
        yield made


def shoot(browser, name):
    if folder := os.environ.get("MAS_SCREENSHOTS"):
        browser.screenshot(Path(folder) / f"page-{name}.png")


def state_is(browser, state):
    browser.until(f"document.body.dataset.state === {state!r}")


def test_page_in_each_state(stage, browser):
    stage.status = changed(stage.status, state="no bundle", says="there is no bundle", tasks=(), known=0, online=0)
    browser.open(f"http://127.0.0.1:{stage.port}/")
    state_is(browser, "no bundle")
    assert "export compile" in browser.text("#steps")
    stage.status = changed(stage.status, state="waiting", says="round 0 waits for devices", tasks=("a", "b"))
    state_is(browser, "waiting")
    browser.until("document.querySelector('#steps').innerText.includes('broker_server enrol NAME')")

    stage.devices = [BARE]
    browser.until("document.querySelector('#steps').innerText.includes('0 of 2 are online')")
    assert "start its agent" in browser.text("#fleet-rows")

    hostile = changed(DEVICE, name="pi-66", doing="refused", stage=None, why=HOSTILE, software=HOSTILE)
    stage.devices = [BARE, DEVICE, hostile]
    stage.events = [shown.Event(number=1, at_s=0.0, text=HOSTILE)]
    stage.rounds = [changed(ROUND, number=n, train_loss={"a": 2.0 / n, "b": 1.0}) for n in range(1, 6)]
    stage.status = changed(STATUS, split=None, phases=STATUS.phases[:1], says="round 3, merge 3 of 4: training a+b")
    state_is(browser, "training")
    assert "1 of 14 results" in browser.text("#facts")
    assert "pi-07 (train 3/10), pi-08 (offline), 10 more" in browser.text("#facts")
    assert "ends" not in browser.text("#phases")
    browser.until("document.querySelectorAll('#losses svg').length === 1")
    assert "a from 2.00 to 0.400" in browser.js("document.querySelector('#losses svg').getAttribute('aria-label')")
    assert HOSTILE in browser.text("#fleet-rows")
    assert HOSTILE in browser.text("#events")
    assert browser.js("document.querySelectorAll('main img, main script').length") == 0
    assert "≥ 60.0 J" in browser.text("#energy")
    assert "−0.25" in browser.text("#affinity")
    assert "0.500 ± 0.10, 3 batches" in browser.js("document.querySelector('#affinity td').title")
    assert browser.js("document.querySelector('#fleet-rows tr').innerText").startswith("pi-66"), "problems come first"

    stage.status = STATUS
    browser.until("document.querySelector('#split').innerText.includes('Decided')")
    stage.status = changed(STATUS, state="paused", open=None, is_paused=True, says="paused")
    state_is(browser, "paused")
    assert "broker_server resume" in browser.text("#steps")
    stage.status = changed(STATUS, state="failed", open=None, says="the federation cannot go on: " + HOSTILE)
    state_is(browser, "failed")
    assert "before its time" in browser.text("#steps")
    stage.status = changed(STATUS, state="finished", open=None, says="all rounds are done")
    state_is(browser, "finished")
    assert browser.js("document.querySelector('#steps a').getAttribute('href')") == "/report/report.html"

    for width, scheme in ((390, "dark"), (1280, "light")):  # a phone, and a screen
        browser.emulate(width=width, scheme=scheme)
        assert browser.js("document.documentElement.scrollWidth") <= width
        shoot(browser, str(width))
    named = browser.accessible()
    assert {"banner", "navigation", "main"} <= {role for role, _ in named}
    assert not [role for role, name in named if role in {"button", "link", "searchbox", "image", "region"} and not name]
    assert browser.errors == []


def test_page_acts_after_a_login_alone(stage, browser):
    stage.status, stage.devices = STATUS, [DEVICE]
    browser.open(f"http://127.0.0.1:{stage.port}/")
    state_is(browser, "training")
    hidden = "['pause', 'resume', 'stop', 'logout'].every((id) => document.getElementById(id).hidden)"
    assert browser.js(hidden)
    assert browser.js("document.querySelectorAll('#fleet-rows button').length") == 0
    browser.click("#login")
    browser.js("document.querySelector('#token').value = 'wrong'")
    browser.click("#token-form button[type=submit]")
    browser.until("document.querySelector('#token-problem').innerText.includes('that is not the token')")
    assert len(browser.errors) == 1, "the browser logs the 403"
    browser.errors.clear()
    browser.js(f"document.querySelector('#token').value = '{pages.token_of(stage.state)}'")
    browser.click("#token-form button[type=submit]")
    browser.until("!document.querySelector('#pause').hidden")
    browser.click("#pause")
    assert stage.acts == [], "it asks first"
    browser.click("#confirm-yes")
    browser.until("!document.querySelector('#resume').hidden")
    browser.click("#fleet-rows button")
    browser.click("#confirm-yes")
    browser.click("#resume")
    browser.until("!document.querySelector('#pause').hidden")
    assert stage.acts == [("pause", None), ("drop", "pi-07"), ("resume", None)]
    browser.click("#logout")
    browser.until(hidden)
    assert browser.js("fetch('/api/act', {method: 'POST', body: '{\"act\":\"stop\"}'}).then((a) => a.status)") == 401
    assert len(stage.acts) == 3
    browser.errors.clear()
    stage.close()
    state_is(browser, "lost")
    assert "it has ended, or the way to it is cut" in browser.text("#problem")


def test_page_with_a_thousand_boards(stage, browser):
    stage.status = changed(STATUS, open=changed(OPEN, members=1000))
    stage.devices = [changed(DEVICE, name=f"pi-{number:04}", done=0) for number in range(1000)]
    browser.open(f"http://127.0.0.1:{stage.port}/")
    browser.until("document.querySelectorAll('#fleet-rows tr').length === 1000")
    browser.js("window.kept = document.querySelectorAll('#fleet-rows tr')[7]")
    stage.devices = [changed(each, done=1) if each.name == "pi-0500" else each for each in stage.devices]
    browser.until("document.querySelectorAll('#fleet-rows tr')[500].innerText.includes('train 1/10')")
    assert browser.js("window.kept === document.querySelectorAll('#fleet-rows tr')[7]"), "what is the same stays"
    browser.js("document.querySelector('#filter').value = 'pi-050'; "
               "document.querySelector('#filter').dispatchEvent(new Event('input'))")  # fmt: skip
    assert browser.js("document.querySelectorAll('#fleet-rows tr').length") == 10
    browser.click("#fleet-head button")
    browser.click("#fleet-head button")
    assert browser.text("#fleet-rows tr").startswith("pi-0509")
    assert browser.errors == []
