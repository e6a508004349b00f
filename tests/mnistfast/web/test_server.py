"""The demo's server against good pictures, bad ones, and clients that do not keep to the rules."""

import base64
import contextlib
import http.client
import io
import json
import math
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

from mnistfast import demo
from mnistfast.data.sources import load
from mnistfast.errors import DataError, StorageError
from mnistfast.results.predictor import Predictor
from mnistfast.web import server as web
from mnistfast.web.server import DemoServer

PNG = {"Content-Type": "image/png"}
HEADER = b"POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


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


def test_a_picture_that_ends_early(server):
    answer = raw(server, HEADER + b"Content-Length: 100\r\n\r\nabc", end=True)
    assert answer.startswith(b"HTTP/1.0 400 ")
    assert b"the picture ended early" in answer


def raw(server, content, end=False):
    """Returns what the server answers to the bytes `content`, after which the client's side is closed or silent."""
    with socket.create_connection(server.server_address[:2], timeout=20) as connection:
        connection.sendall(content)
        if end:
            connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").read()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": "localhost.evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "evil.example@127.0.0.1"},
        {"Host": "localhost:80.evil.example"},
        {"Host": "[evil.example]"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},  # another server on this machine
    ],
)
def test_what_another_site_is_behind_gets_403(server, method, headers):
    status, found, body = ask(server, method, "/read", picture(0), PNG | headers)
    assert (status, found["Content-Type"]) == (403, "application/json")
    assert method == "HEAD" or "open http://" in json.loads(body)["error"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "192.168.1.5:8765", "[::1]:8765", "[fe80::1]"]
)
def test_a_browser_that_names_an_address_or_localhost_is_answered(server, host):
    assert ask(server, "GET", "/", headers={"Host": host})[0] == 200
    assert ask(server, "POST", "/read", picture(0), PNG | {"Host": host, "Origin": f"http://{host}"})[0] == 200


def test_the_name_that_is_listened_on_is_answered(server):
    with DemoServer(server.predictor, "localhost") as other:
        other.names.add("box.lan")
        assert other.is_called("BOX.lan:8765")
        assert not other.is_called("box.lan.evil")


@pytest.mark.parametrize("hosts", [b"", b"Host: localhost\r\nHost: evil\r\n"])
def test_one_host_must_be_named(server, hosts):
    answer = raw(server, b"GET / HTTP/1.1\r\n" + hosts + b"\r\n")
    assert answer.startswith(b"HTTP/1.0 400 ")
    assert b'{"error": "one Host' in answer


def test_head_is_answered_as_get_without_the_page(server):
    _, headers, page = ask(server, "GET", "/")
    status, found, body = ask(server, "HEAD", "/")
    assert (status, body) == (200, b"")
    assert found["Content-Length"] == headers["Content-Length"] == str(len(page))
    assert raw(server, b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n").endswith(b"\r\n\r\n")
    assert raw(server, b"HEAD /x HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.0 404 ")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"DELETE / HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
        (b"GET / HTTP/3.0\r\nHost: localhost\r\n\r\n", 505),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (1 << 17) + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + (b"X: " + b"x" * 60_000 + b"\r\n") * 3 + b"\r\n", 431),
        (b"GET /" + b"x" * (1 << 17) + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: localhost", 400),  # and no more
    ],
)
def test_what_is_no_request_is_refused_in_one_line_of_json(server, content, status):
    header, _, body = raw(server, content, end=True).partition(b"\r\n\r\n")
    assert header.startswith(b"HTTP/1.0 %d " % status)
    assert b"Content-Type: application/json" in header
    assert list(json.loads(body)) == ["error"]


def test_a_refusal_reaches_a_client_that_is_still_sending(server):
    for _ in range(5):
        assert ask(server, "POST", "/read", bytes(web.MAX_UPLOAD + 1), PNG)[0] == 413


def all_at_once(count, work):
    """Returns what `work` returned in each of `count` threads."""
    ready, found = threading.Barrier(count), []

    def one():
        ready.wait()
        found.append(work())

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_sixty_clients_at_once_are_answered(server):
    content = picture(0)
    found = all_at_once(60, lambda: ask(server, "POST", "/read", content, PNG)[0])
    assert len(found) == 60
    assert set(found) <= {200, 503}


BODY = HEADER + b"Content-Length: 12582912\r\n\r\nabc"


@pytest.mark.parametrize(
    ("count", "start"), [(16, b""), (16, b"GET / HTT"), (16, HEADER), (17, BODY), (40, b""), (40, BODY)],
    ids=["silent", "line", "header", "body", "many silent", "many bodies"],
)  # fmt: skip
def test_slow_clients_keep_nobody_out(server, start, count, monkeypatch):
    monkeypatch.setattr(server.visitors, "most", 20)
    monkeypatch.setattr(server.visitors, "workers", 10)
    monkeypatch.setattr(server.visitors, "seconds", math.inf)  # no slow one ends meanwhile for being late
    slow = [socket.create_connection(server.server_address[:2], timeout=20) for _ in range(count)]
    try:
        for connection in slow:
            with contextlib.suppress(OSError):  # had to make room
                connection.sendall(start)
        for _ in range(3):
            assert ask(server, "GET", "/")[0] == 200
            assert ask(server, "POST", "/read", picture(0), PNG)[0] == 200
    finally:
        for connection in slow:
            connection.close()


def test_a_silent_client_is_told_why_it_is_ended(server, monkeypatch):
    monkeypatch.setattr(server.visitors, "seconds", 0.1)
    assert raw(server, b"").startswith(b"HTTP/1.0 408 ")
    assert raw(server, b"", end=True) == b""  # it left of its own


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", HEADER + b"Content-Length: 100\r\n\r\n"])
def test_a_client_that_is_slow_without_falling_silent_is_ended(server, start, monkeypatch):
    monkeypatch.setattr(server.visitors, "seconds", 0.2)
    with socket.create_connection(server.server_address[:2], timeout=0.05) as connection:
        connection.sendall(start)
        deadline, answer = time.monotonic() + 60, b""
        while not answer and time.monotonic() < deadline:
            connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.0 408 ")
    assert ask(server, "GET", "/")[0] == 200


def test_a_client_that_does_not_take_its_answer_is_ended(server, monkeypatch):
    monkeypatch.setattr(server.visitors, "seconds", 0.2)
    monkeypatch.setattr(server, "page", bytes(64 << 20))  # more than the system keeps on the way
    with socket.create_connection(server.server_address[:2], timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(1) == b"H"  # its answer has begun
        deadline = time.monotonic() + 60
        while len(server.visitors) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not len(server.visitors)


def test_who_would_wait_too_long_for_the_model_is_told(server, monkeypatch):
    monkeypatch.setattr(web, "PATIENCE", 0.1)
    with server.reading:
        status, headers, body = ask(server, "POST", "/read", picture(0), PNG)
    assert (status, headers["Retry-After"]) == (503, "1")
    assert "try again" in json.loads(body)["error"]
    assert ask(server, "POST", "/read", picture(0), PNG)[0] == 200


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
    assert demo.main(["--host", ""]) == 2  # to sockets it means every address
    assert "It must be an address or a name" in capsys.readouterr().err


def test_ctrl_c_ends_it(reader, capsys, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(DemoServer, "serve_forever", stop)
    assert demo.main(["--checkpoint", str(reader), "--port", "0"]) == 130
    assert capsys.readouterr().err == "mnistfast: stopped\n"
