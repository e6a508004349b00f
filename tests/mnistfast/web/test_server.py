"""The demo's server against good pictures, bad ones, and clients that do not keep to the rules."""

import base64
import http.client
import io
import json
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

from mnistfast import demo
from mnistfast.data.sources import load
from mnistfast.engine.predictor import Predictor
from mnistfast.errors import DataError, StorageError
from mnistfast.web import server as web
from mnistfast.web.server import DemoServer

PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def server(reader):
    """A server on a free port, answering."""
    with DemoServer(Predictor(reader, "cpu")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(*server.server_address, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        connection.close()


def picture(index):
    buffer = io.BytesIO()
    Image.fromarray(load("sample", offline=True).test.images[index, 0]).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_page_loads_nothing_from_elsewhere(server):
    status, headers, body = ask(server, "GET", "/")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    for word in (b"http:", b"https:", b"//cdn", b"@import", b"url("):
        assert word not in body
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}/"


def test_a_picture_is_read(server):
    sample, right = load("sample", offline=True).test, 0
    for index in range(6):
        status, headers, body = ask(server, "POST", "/read", picture(index), PNG)
        answer = json.loads(body)
        assert (status, headers["Content-Type"]) == (200, "application/json")
        assert answer["classes"] == list("0123456789")
        assert sum(answer["probabilities"]) == pytest.approx(1)
        right += int(np.argmax(answer["probabilities"])) == sample.labels[index]
        with Image.open(io.BytesIO(base64.b64decode(answer["view"].removeprefix("data:image/png;base64,")))) as view:
            np.testing.assert_array_equal(np.asarray(view), sample.images[index, 0])
    assert right >= 5  # the model is no good one


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "message"),
    [
        ("GET", "/../etc/passwd", None, {}, 404, "only one page"),
        ("POST", "/", b"x", PNG, 404, "pictures go to /read"),
        ("POST", "/read", b"x", {"Content-Type": "text/plain"}, 415, "the Content-Type must be"),
        ("POST", "/read", b"x", {}, 415, "the Content-Type must be"),
        ("POST", "/read", None, {**PNG, "Content-Length": str(web.MAX_UPLOAD + 1)}, 413, "at most 12,582,912 bytes"),
        ("POST", "/read", None, {**PNG, "Content-Length": "9" * 5000}, 413, "at most"),
        ("POST", "/read", None, {**PNG, "Content-Length": "-1"}, 411, "the Content-Length must be given"),
        (
            "POST",
            "/read",
            iter([b"x"]),
            {**PNG, "Transfer-Encoding": "chunked"},
            411,
            "the Content-Length must be given",
        ),
        ("POST", "/read", b"no picture", PNG, 422, "cannot identify image"),
        ("POST", "/read", b"", PNG, 422, "cannot identify image"),
    ],
)
def test_refused(server, method, path, body, headers, status, message):
    found, _, content = ask(server, method, path, body, headers)
    assert (found, message in json.loads(content)["error"]) == (status, True)


def test_a_picture_that_ends_early_and_a_client_that_falls_silent(server, monkeypatch):
    with socket.create_connection(server.server_address[:2], timeout=20) as connection:
        connection.sendall(b"POST /read HTTP/1.1\r\nContent-Type: image/png\r\nContent-Length: 100\r\n\r\nabc")
        connection.shutdown(socket.SHUT_WR)
        assert b"the picture ended early" in connection.makefile("rb").read()
    monkeypatch.setattr(web._Handler, "timeout", 0.2)
    with socket.create_connection(server.server_address[:2], timeout=20) as connection:
        connection.sendall(b"POST /read HTTP/1.1\r\nContent-Type: image/png\r\nContent-Length: 100\r\n\r\nabc")
        started = time.monotonic()
        connection.makefile("rb").read()
        assert time.monotonic() - started < 10
    assert ask(server, "GET", "/")[0] == 200


def test_too_many_connections_are_closed(server):
    held = [socket.create_connection(server.server_address[:2], timeout=20) for _ in range(web.MAX_CONNECTIONS)]
    time.sleep(0.2)  # until each has its thread
    with pytest.raises((http.client.HTTPException, OSError)):
        ask(server, "GET", "/")
    for connection in held:
        connection.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            assert ask(server, "GET", "/")[0] == 200
            return
        except (http.client.HTTPException, OSError):
            time.sleep(0.05)
    raise AssertionError("the server never served again")


def test_a_taken_port_and_a_model_for_colours(server):
    with pytest.raises(StorageError, match=r"cannot listen on 127\.0\.0\.1 port"):
        DemoServer(server.predictor, port=server.server_address[1])

    class Colourful:
        path, info = "x", type("Info", (), {"input_size": (3, 32, 32)})

    with pytest.raises(DataError, match="x takes 3 colours"):
        DemoServer(Colourful())


def test_command(reader, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(DemoServer, "serve_forever", lambda self: seen.append(self.url))
    assert demo.main(["--checkpoint", str(reader), "--port", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"url": seen[0], "checkpoint": str(reader / "best.safetensors")}
    assert demo.main(["--checkpoint", str(reader), "--port", "0"]) == 0
    assert f"reads what you draw at {seen[1]} (Ctrl-C stops)" in capsys.readouterr().out
    assert demo.main(["--port", "70000"]) == 2
    assert "--port is 70000. It must be from 0 to 65535" in capsys.readouterr().err


def test_ctrl_c_ends_it(reader, capsys, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(DemoServer, "serve_forever", stop)
    assert demo.main(["--checkpoint", str(reader), "--port", "0"]) == 130
    assert capsys.readouterr().err == "mnistfast: stopped\n"
