"""Downloads from servers on this machine: good, refusing, lying, broken and silent ones."""

import contextlib
import errno
import gzip
import logging
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from mnistfast.data import fetch, published, sources
from mnistfast.data.idx import header
from mnistfast.errors import StorageError

FIRST = "train-images-idx3-ubyte.gz"
PATIENCE_S = 0.4  # of all mirrors together, in these tests


class Mirror:
    """A server whose answers a test chooses: `answers[file name]` writes to a request handler."""

    def __init__(self, answers):
        self.asked = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rsplit("/", 1)[1]
                mirror.asked.append(name)
                with contextlib.suppress(ConnectionError):
                    answers[name](self)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/mnist/"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def content(body, *, promised=None):
    """Answers 200 with `body`, whose length the answer gives as `promised`."""

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body) if promised is None else promised))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def status(code):
    return lambda handler: handler.send_error(code)


def drip(pieces, pause_s):
    """Answers 200 and sends the pieces with a pause after each."""

    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(pause_s)

    return answer


@pytest.fixture
def good(arrays, official):
    """The answers of a mirror that serves the (small) official set."""
    packed = {role: gzip.compress(header(array) + array.tobytes()) for role, array in arrays.items()}
    return {f"{published.ROLES[role]}.gz": content(body) for role, body in packed.items()}


@pytest.fixture
def mirrors(use_mirrors):
    """Starts mirrors with the given answers and makes them the ones that are asked."""
    started = []

    def start(*all_answers):
        started.extend(Mirror(answers) for answers in all_answers)
        use_mirrors(*(mirror.url for mirror in started))
        return started

    yield start
    for mirror in started:
        mirror.close()


@pytest.fixture
def silent():
    """The address of a socket that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/mnist/"


@pytest.fixture
def short_patience(monkeypatch):
    monkeypatch.setattr(fetch, "PATIENCE_S", PATIENCE_S)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "mnist"


def refusal(spec="mnist"):
    """Returns the error of a load that must fail."""
    with pytest.raises(StorageError) as caught:
        sources.load(spec)
    assert caught.value.code == 7
    assert "put train-images-idx3-ubyte[.gz], " in caught.value.fix
    return caught.value


def test_fetches_once_then_reads_the_cache(good, mirrors, cache, arrays, caplog):
    (mirror,) = mirrors(good)
    with caplog.at_level(logging.INFO):
        data = sources.load("mnist")
    assert data.name == "mnist"
    assert data.notice == ""
    np.testing.assert_array_equal(data.train.images[:, 0], arrays["train-images"])
    assert sorted(path.name for path in cache.iterdir()) == sorted(good)
    assert f"downloading {mirror.url}{FIRST}" in caplog.messages  # what a progress display can show
    for spec, offline in (("mnist", False), (None, False), ("mnist", True), (None, True)):
        assert sources.load(spec, offline=offline).name == "mnist"
    assert sorted(mirror.asked) == sorted(good)


def test_403_then_the_second_mirror(good, mirrors):
    refusing, serving = mirrors(dict.fromkeys(good, status(403)), good)
    assert sources.load("mnist").notice == ""
    assert refusing.asked == [FIRST]  # a mirror that failed is not asked for the other files
    assert sorted(serving.asked) == sorted(good)


def test_only_what_is_missing_is_fetched(good, mirrors, cache, write_set):
    write_set(cache)
    (cache / FIRST).unlink()
    (mirror,) = mirrors(good)
    sources.load("mnist")
    assert mirror.asked == [FIRST]


def test_a_file_that_failed_half_way_is_taken_from_the_next_mirror(good, mirrors):
    labels = "t10k-labels-idx1-ubyte.gz"
    _, second = mirrors({**good, labels: status(503)}, good)
    sources.load("mnist")
    assert second.asked == [labels]


ANSWERS = {
    "403": (status(403), "HTTP 403"),
    "404": (status(404), "HTTP 404"),
    "html": (content(b"<!DOCTYPE html><html>Sign in to the network"), "HTML or XML, not IDX"),
    "truncated": (lambda handler: None, ""),  # made of the good file, in the test
    "shorter than announced": (content(b"\x1f\x8b", promised=1000), "IncompleteRead"),
    "nothing": (lambda handler: None, "Remote end closed connection"),
    "other content": (
        content(gzip.compress(header(np.zeros((3, 4, 5), np.uint8)) + bytes(60))),
        "not the official MNIST",
    ),
    "endless": (content(bytes(3000)), "longer than 2,000 bytes"),
}


@pytest.mark.parametrize("case", ANSWERS)
@pytest.mark.parametrize("spec", ["mnist", None])
def test_bad_answer_is_refused_and_leaves_nothing(case, spec, good, mirrors, cache, arrays, monkeypatch):
    answer, reason = ANSWERS[case]
    if case == "truncated":
        whole = header(arrays["train-images"]) + arrays["train-images"].tobytes()
        answer, reason = content(gzip.compress(whole)[:-20]), "gzip ends early after"
    monkeypatch.setattr(fetch, "MAX_BYTES", 2000)
    (mirror,) = mirrors({**good, FIRST: answer})
    if spec is None:
        data = sources.load(None)
        assert data.name == "sample"
        assert reason in data.notice
        assert "\n" not in data.notice
    else:
        error = refusal()
        assert reason in error.why
        assert mirror.url.split("/")[2] in error.why
    assert list(cache.iterdir()) == []


def test_every_mirror_gets_its_reason(good, mirrors):
    first, second = mirrors(dict.fromkeys(good, status(403)), dict.fromkeys(good, status(500)))
    hosts = [mirror.url.split("/")[2] for mirror in (first, second)]
    assert refusal().why == f"{hosts[0]}: HTTP 403; {hosts[1]}: HTTP 500"


def test_no_listener(use_mirrors):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    use_mirrors(f"http://127.0.0.1:{port}/")
    assert refusal().why.lower() == f"127.0.0.1:{port}: connection refused"


@pytest.mark.parametrize("spec", ["mnist", None])
def test_silent_network_delays_no_longer_than_the_patience(spec, silent, short_patience, use_mirrors, cache):
    use_mirrors(silent, silent)
    if spec is None:
        assert "timed out after 0.2 s of waiting (0 KiB came)" in sources.load(None).notice
    else:
        assert refusal().why.count("timed out after 0.2 s of waiting (0 KiB came)") == 2
    assert list(cache.iterdir()) == []


def test_a_silent_mirror_leaves_time_for_the_next(silent, good, mirrors, monkeypatch, use_mirrors):
    (serving,) = mirrors(good)
    use_mirrors(silent, serving.url)
    shares, patience = [], fetch.Patience

    def short_for_the_first(seconds):
        shares.append(seconds)
        return patience(60 if len(shares) > 1 else 0.1)

    monkeypatch.setattr(fetch, "Patience", short_for_the_first)
    assert sources.load("mnist").notice == ""
    assert shares == [fetch.PATIENCE_S / 2] * 2


def test_a_name_lookup_that_hangs_is_bounded_too(short_patience, monkeypatch):
    woken = threading.Event()

    def hang(*args, **kwargs):
        woken.wait(60)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    assert "timed out" in refusal().why
    assert not woken.is_set()
    woken.set()


def test_name_that_is_not_found(monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    hosts = ("ossci-datasets.s3.amazonaws.com", "storage.googleapis.com")
    assert refusal().why == "; ".join(f"{host}: Name or service not known" for host in hosts)


def test_drops_buy_no_long_wait(good, mirrors, short_patience):
    mirrors({**good, FIRST: drip([b"\x1f"] * 100, 0.05)})
    assert "timed out after 0.4 s of waiting (0 KiB came)" in refusal().why


class Clock:
    """Stands for the machine's clock: it stands still until it is told to go on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_slow_but_steady_gets_through():
    clock = Clock()
    patience = fetch.Patience(18, clock)
    for _ in range(60):  # a minute, at twice the least rate
        clock.now += 1
        assert patience.left() > 0
        patience.add(2 * fetch.MIN_RATE)
    assert patience.received == 120 * fetch.MIN_RATE


def test_what_came_before_buys_no_long_silence():
    clock = Clock()
    patience = fetch.Patience(18, clock)
    patience.add(1000 * fetch.MIN_RATE)
    assert patience.left() == 18
    clock.now += 18
    assert patience.left() == 0


def test_what_drips_in_buys_as_much_as_it_is_worth():
    clock = Clock()
    patience = fetch.Patience(18, clock)
    clock.now += 10
    patience.add(fetch.MIN_RATE)
    assert patience.left() == 9


def test_failed_rename_leaves_no_partial_file(good, mirrors, cache, monkeypatch):
    def fail(*names, **folders):
        raise OSError(errno.ENOSPC, "No space left on device")

    mirrors(good)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match=r"cannot write .*: no space left .*FIX: set MNISTFAST_CACHE"):
        sources.load("mnist")
    assert list(cache.iterdir()) == []


def test_a_file_appears_whole_or_not_at_all(good, mirrors, cache, monkeypatch):
    mirrors(good)
    seen = []
    replace = os.replace

    def spy(source, target, **folders):
        seen.append((target, (cache / target).exists(), (cache / source).read_bytes()))
        replace(source, target, **folders)

    monkeypatch.setattr(os, "replace", spy)
    sources.load("mnist")
    assert seen == [(name, False, (cache / name).read_bytes()) for name in good]
    assert sorted(path.name for path in cache.iterdir()) == sorted(good)


def test_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MNISTFAST_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"cannot make the folder .*FIX: set MNISTFAST_CACHE"):
        sources.load("mnist")
    assert "cannot make the folder" in sources.load(None).notice


@pytest.mark.parametrize("spec", ["mnist", None])
def test_offline_opens_no_socket(spec, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    if spec is None:
        assert "--offline" in sources.load(None, offline=True).notice
    else:
        with pytest.raises(StorageError, match="--offline forbids a download") as caught:
            sources.load("mnist", offline=True)
        assert "MNISTFAST_DATA (not set)" in caught.value.what


def test_never_asks_the_home_that_refuses():
    urls = published.SETS["mnist"].mirrors
    assert len(urls) > 1
    assert all(url.startswith("https://") and url.endswith("/") and "lecun" not in url for url in urls)


def test_cache_of_the_platform(tmp_path, write_set, official, monkeypatch, no_network):
    monkeypatch.delenv("MNISTFAST_CACHE")
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "platform" / project)
    write_set(tmp_path / "platform" / "mnistfast" / "mnist")
    assert sources.load("mnist").name == "mnist"
