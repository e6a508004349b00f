"""The demo's server: the page at `/`, and `POST /read`, which answers an image file with JSON."""

from __future__ import annotations

import base64
import io
import ipaddress
import json
import re
import socket
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from mnistfast import __version__
from mnistfast.data.picture import to_png
from mnistfast.errors import DataError, StorageError
from mnistfast.results.predictor import Predictor
from mnistfast.web.visitors import BUSY, Visitors

MAX_UPLOAD = 12 << 20  # bytes: a phone's photograph passes, a film does not
MAX_MEMORY = 16 * MAX_UPLOAD  # of all requests: 200 MB
MAX_HEADER = 1 << 16  # bytes; a browser sends one or two thousand
MAX_CONNECTIONS = 128  # at once, a thread each
MAX_WORKERS = 64  # of them, those whose request is whole
TIMEOUT = 10  # seconds for sending a request and taking its answer, whatever the pace
PATIENCE = 1.0  # seconds that a picture waits for those before it
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
        names: what the machine may be called, but for its addresses.
        visitors: who is being served.
        reading: held while a picture is read: one at a time is fastest, and bounds the memory.
    """

    daemon_threads = True
    request_queue_size = 1024  # the system lets a client that finds no place there wait for seconds

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
        self.names = {"localhost", host.lower()}
        self.visitors = Visitors(MAX_CONNECTIONS, MAX_WORKERS, MAX_MEMORY, TIMEOUT)
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

    def is_called(self, host: str) -> bool:
        """Tells whether `host`, of a request's header, is a name of this machine or an address.

        Another site can let its own name lead here, and its pages would then pass for ours; an address it cannot take.
        """
        found = re.fullmatch(r"(\[.*\]|[^:@]*)(:\d*)?", host)
        name = found[1].lower() if found else ""
        with suppress(ValueError):
            return bool(ipaddress.ip_address(name.strip("[]")))
        return name in self.names

    def read(self, content: bytes) -> dict[str, Any]:
        """Returns the answer to the image file `content`, its view as a data URL included.

        Raises:
            DataError: it shows no character.
            Refused: too many others are before it.
        """
        start = time.perf_counter()
        if not self.reading.acquire(timeout=PATIENCE):
            raise Refused(*BUSY)
        try:
            view = self.predictor.view(content)
            [probabilities] = self.predictor.probabilities([view])
        finally:
            self.reading.release()
        return {
            "classes": list(self.predictor.info.classes),
            "probabilities": probabilities,
            "view": "data:image/png;base64," + base64.b64encode(to_png(view.pixels)).decode(),
            "inverted": view.inverted,
            "warnings": list(view.warnings),
            "milliseconds": 1e3 * (time.perf_counter() - start),
        }

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Lets a connection in."""
        return self.visitors.admit(request)

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection."""
        self.visitors.leave(request)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Looks, at least twice a second, whose time is over."""
        self.visitors.end_late()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Passes over clients that went away."""


class Refused(Exception):
    """A request that is answered with an error: its status and one line."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message


class _Handler(BaseHTTPRequestHandler):
    server: DemoServer
    server_version, sys_version = f"mnistfast/{__version__}", ""
    default_request_version = request_version = "HTTP/1.0"  # also where nothing came that is HTTP: answers have headers
    command = requestline = ""
    raw_requestline: bytes
    wbufsize = 1 << 16  # header and content go in one piece

    def handle(self) -> None:
        super().handle()
        if not self.raw_requestline and self.server.visitors.refusal(self.connection):
            self.send_error(HTTPStatus.REQUEST_TIMEOUT)

    def parse_request(self) -> bool:
        """Reads the header; a request that another site may be behind ends here, whatever it asks for."""
        header, content = self._header(), self.rfile
        self.rfile = io.BytesIO(header)
        try:
            if not super().parse_request():
                return False
        finally:
            self.rfile = content
        if not (self.raw_requestline + header).endswith((b"\n\r\n", b"\n\n")):
            if len(header) < MAX_HEADER:
                return self._refuse(HTTPStatus.BAD_REQUEST, "the header ended early")
            return self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"at most {MAX_HEADER:,} bytes of header")
        hosts, origin = self.headers.get_all("Host", []), self.headers.get("Origin")
        if len(hosts) != 1:
            return self._refuse(HTTPStatus.BAD_REQUEST, "one Host must be named")
        if not self.server.is_called(hosts[0]) or (origin and origin.lower() != f"http://{hosts[0]}".lower()):
            return self._refuse(HTTPStatus.FORBIDDEN, f"another site asks for this: open {self.server.url} itself")
        return True

    def _header(self) -> bytes:
        """Returns the lines up to the first empty one, or as many bytes as a header may have."""
        header = b""
        while line := self.rfile.readline(MAX_HEADER - len(header)):
            header += line
            if line in (b"\r\n", b"\n"):
                break
        return header

    def do_GET(self) -> None:
        if self.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is only one page, /")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        try:
            self._send_json(HTTPStatus.OK, self.server.read(self._body()))
        except Refused as refused:
            self._refuse(refused.status, refused.message)
        except DataError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))

    def _body(self) -> bytes:
        if self.path != "/read":
            raise Refused(HTTPStatus.NOT_FOUND, "pictures go to /read")
        # A form of another site cannot send this type without asking first, and is never allowed to.
        if not self.headers.get("Content-Type", "").startswith("image/"):
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the Content-Type must be that of an image")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the Content-Length must be given")
        if len(length) > 15 or int(length) > MAX_UPLOAD:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_UPLOAD:,} bytes are read")
        visitors = self.server.visitors
        if not visitors.hold(self.connection, int(length)):
            raise Refused(*BUSY)
        content = self.rfile.read(int(length))
        if len(content) < int(length):
            raise Refused(HTTPStatus.BAD_REQUEST, "the picture ended early")
        if not visitors.work(self.connection):
            raise Refused(*BUSY)
        return content

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers as http.server's own refusals ask for."""
        self._refuse(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def _refuse(self, status: HTTPStatus, message: str) -> bool:
        """Answers with an error and returns False. What is wrong with a request that was cut off is why it was."""
        status, message = self.server.visitors.refusal(self.connection) or (status, message)
        self._send_json(status, {"error": message})
        self.wfile.flush()
        # Who closes on a client that still sends resets the connection, and the answer is lost with it.
        self.connection.shutdown(socket.SHUT_WR)
        while self.connection.recv(1 << 16):
            pass
        return False

    def _send_json(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.server.visitors.answer(self.connection)
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Content-Security-Policy", POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Cache-Control", "no-store"),
            *([("Retry-After", "1")] if status == HTTPStatus.SERVICE_UNAVAILABLE else []),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: an answer a stroke would flood the screen."""
