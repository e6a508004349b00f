"""The page in a real browser: headless Chromium, driven through ChromeDriver's HTTP protocol (W3C WebDriver)."""

import base64
import json
import math
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.request

import pytest

from mnistfast.results.predictor import Predictor
from mnistfast.web.server import DemoServer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the name that the standard gives to an element's number
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server")


class Browser:
    """One tab of a browser."""

    def __init__(self, folder):
        self._driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True, start_new_session=True)
        port = next(
            match[1] for line in self._driver.stdout if (match := re.search(r"successfully on port (\d+)", line))
        )
        self._url = f"http://127.0.0.1:{port}/session"
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={folder}", "--window-size=900,700"]}
        logs = {"goog:loggingPrefs": {"browser": "ALL"}}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, **logs}
        self._url += "/" + self.send("POST", "", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def send(self, method, path, value=None):
        body = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(self._url + path, body, {"Content-Type": "application/json"}, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
            return json.load(reply)["value"]

    def run(self, script):
        """Returns what the page's own `script` returns."""
        return self.send("POST", "/execute/sync", {"script": script, "args": []})

    def draw(self, points, kind="mouse"):
        """Draws a line through `points`, in pixels from the middle of the paper, at the pace of a quick hand."""
        found = self.send("POST", "/element", {"using": "css selector", "value": "#paper"})
        moves = [
            {"type": "pointerMove", "duration": 12, "origin": {ELEMENT: found[ELEMENT]}, "x": round(x), "y": round(y)}
            for x, y in points
        ]
        actions = [moves[0] | {"duration": 0}, {"type": "pointerDown", "button": 0}, *moves[1:]]
        actions.append({"type": "pointerUp", "button": 0})
        pointer = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}, "actions": actions}
        self.send("POST", "/actions", {"actions": [pointer]})

    def settled(self):
        """Waits until what was drawn is answered and returns the label."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            label, answered, busy = self.run(
                "return [$('label').textContent, document.body.dataset.answered, asking || changed > 0]"
            )
            if answered and not busy:
                return label
            time.sleep(0.02)
        raise AssertionError(f"no answer: {self.run('return document.body.innerText')}")

    def close(self):
        try:
            self.send("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(20)
            self._driver.stdout.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def checkpoint(request):
    """What reads: the checkpoint named by MNISTFAST_DEMO_CHECKPOINT, or one trained for the tests."""
    return os.environ.get("MNISTFAST_DEMO_CHECKPOINT") or request.getfixturevalue("reader")


@pytest.fixture(scope="module")
def page(browser, checkpoint):
    """The demo's page, open in the browser."""
    with DemoServer(Predictor(checkpoint, "cpu")) as server:
        server.read(blot())  # the first answer of a process is slower
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        browser.send("POST", "/url", {"url": server.url})
        yield browser
        server.shutdown()
        thread.join()


def blot():
    """Returns a picture on which there is something."""
    return b"P5 28 28 255\n" + bytes(28 * 14) + b"\xff" * (28 * 2) + bytes(28 * 12)


def arc(x, y, radius, start, end):
    angles = [math.radians(start + (end - start) * step / 14) for step in range(15)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


THREE = [*arc(-5, -45, 42, -150, 80), *arc(-5, 42, 48, -80, 150)]


@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_a_three_is_read(page, kind):
    page.run("clear()")
    page.draw(THREE, kind)
    assert page.settled() == "3"
    assert page.run("return $('seen').naturalWidth") == 28
    shares = page.run("return [...document.querySelectorAll('.row')].map(row => parseFloat(row.lastChild.textContent))")
    assert len(shares) == 10
    assert sum(shares) == pytest.approx(100, abs=1)
    assert shares[3] == max(shares)
    if target := os.environ.get("MNISTFAST_DEMO_SCREENSHOT"):  # for the README
        with open(target, "wb") as file:
            file.write(base64.b64decode(page.send("GET", "/screenshot")))


def test_clear_wipes_the_answer_too(page):
    page.draw(THREE)
    page.settled()
    page.run("clear()")
    assert page.run("return [$('label').textContent, $('bars').children.length, $('seen').hidden]") == ["", 0, True]
    white = "return pen.getImageData(0, 0, 300, 300).data.every(value => value === 255)"
    assert page.run(white)


def test_nothing_is_asked_of_anyone_else(page):
    assert page.run("return performance.getEntriesByType('resource').every(e => e.name.startsWith(location.origin)"
                    " || e.name.startsWith('data:'))")  # fmt: skip
    assert [entry for entry in page.send("POST", "/se/log", {"type": "browser"}) if entry["level"] == "SEVERE"] == []
