"""The demo's server: the page at `/`, and `POST /read`, which answers an image file with JSON."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from mnistfast import __version__
from mnistfast.data.picture import to_png
from mnistfast.engine.predictor import Predictor
from mnistfast.errors import DataError, StorageError

MAX_UPLOAD = 12 << 20  # bytes: a phone's photograph passes, a film does not
MAX_CONNECTIONS = 16  # at once: uploads take 200 MB at most
TIMEOUT = 10  # seconds that a client may be silent in the middle of a request
# The page loads nothing, asks nobody but this server, and is shown in no other page.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class DemoServer(ThreadingHTTPServer):
    """Answers browsers with one model.

    Attributes:
        predictor: the model.
        page: what `/` shows.
        reading: held while a picture is read: one at a time is fastest, and bounds the memory.
    """

    daemon_threads = True

    def __init__(self, predictor: Predictor, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listens on `host` and `port`; 0 is any free one.

        Raises:
            StorageError: nothing can listen there.
            DataError: the model does not read single grey characters.
        """
        if predictor.info.input_size[0] != 1:
            what = f"{predictor.path} takes {predictor.info.input_size[0]} colours"
            raise DataError(what, "What is drawn has none", "--checkpoint of a model for grey images")
        self.predictor, self.reading = predictor, threading.Lock()
        self.page = resources.files("mnistfast.web").joinpath("page.html").read_bytes()
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise StorageError(f"cannot listen on {host} port {port}", reason, "another --port") from error

    @property
    def url(self) -> str:
        """Where a browser finds the page."""
        host, port = map(str, self.server_address[:2])
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def read(self, content: bytes) -> dict[str, Any]:
        """Returns the answer to the image file `content`, its view as a data URL included. Raises DataError."""
        start = time.perf_counter()
        with self.reading:
            view = self.predictor.view(content)
            [probabilities] = self.predictor.probabilities([view])
        return {
            "classes": list(self.predictor.info.classes),
            "probabilities": probabilities,
            "view": "data:image/png;base64," + base64.b64encode(to_png(view.pixels)).decode(),
            "inverted": view.inverted,
            "warnings": list(view.warnings),
            "milliseconds": 1e3 * (time.perf_counter() - start),
        }

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serves a connection in a thread of its own, or closes it when there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Passes over clients that went away."""


class _Refused(Exception):
    """A request that is answered with an error: its status and one line."""


class _Handler(BaseHTTPRequestHandler):
    server: DemoServer
    server_version, sys_version = f"mnistfast/{__version__}", ""
    timeout = TIMEOUT

    def do_GET(self) -> None:
        if self.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": "there is only one page, /"})

    def do_POST(self) -> None:
        try:
            self._send_json(HTTPStatus.OK, self.server.read(self._body()))
        except _Refused as refused:
            status, message = refused.args
            self._send_json(status, {"error": message})
        except DataError as error:
            self._send_json(HTTPStatus.UNPROCESSABLE_ENTITY, {"error": str(error)})

    def _body(self) -> bytes:
        if self.path != "/read":
            raise _Refused(HTTPStatus.NOT_FOUND, "pictures go to /read")
        # A form of another site cannot send this type without asking first, and is never allowed to.
        if not self.headers.get("Content-Type", "").startswith("image/"):
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the Content-Type must be that of an image")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the Content-Length must be given")
        if len(length) > 15 or int(length) > MAX_UPLOAD:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_UPLOAD:,} bytes are read")
        content = self.rfile.read(int(length))
        if len(content) < int(length):
            raise _Refused(HTTPStatus.BAD_REQUEST, "the picture ended early")
        return content

    def _send_json(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Content-Security-Policy", POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: an answer a stroke would flood the screen."""
