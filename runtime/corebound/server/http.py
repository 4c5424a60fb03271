"""The HTTP side, in threads of rank 0: /health, /ready, /v1/models, /v1/completions."""

from __future__ import annotations

import json
import logging
import queue
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from corebound.engine.inbox import Inbox, News, State, Ticket, UnavailableError
from corebound.engine.request import RequestOutput
from corebound.errors import CoreboundError, HostError, RequestError
from corebound.logs import get_logger
from corebound.server.completions import Answer, CompletionRequest, parse_completion
from corebound.server.failures import error_body, told
from corebound.server.hangups import Hangups

_LOGGER = get_logger(__name__)
MAX_BODY_BYTES = 2 << 20
# Completions that may be under way; probes are answered beyond them, up to the number of connections.
MAX_COMPLETIONS = 512
MAX_CONNECTIONS = 2048
# A client that sends or takes nothing for so long has left.
_CLIENT_TIMEOUT_S = 60.0
_RETRY_AFTER_S = 5

# The index of a prompt within its request, and its news; an error of the connection when the client has left.
_Inward = queue.SimpleQueue[tuple[int, News | ConnectionError]]


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: HttpServer
    protocol_version = "HTTP/1.1"
    timeout = _CLIENT_TIMEOUT_S

    def do_GET(self) -> None:
        """Answer what is asked of the service itself."""
        routes = {"/health": self._health, "/ready": self._ready, "/v1/models": self._models}
        self._route(routes, "GET")

    def do_POST(self) -> None:
        """Answer what is asked of the model."""
        self._route({"/v1/completions": self._complete}, "POST")

    def version_string(self) -> str:
        """Return what the header Server says."""
        return "corebound"

    def log_message(self, format: str, *args: Any) -> None:
        """Log at level debug: prompts are in no line, only method, path and status."""
        _LOGGER.debug("%s %s", self.address_string(), format % args)

    def _route(self, routes: dict[str, Any], method: str) -> None:
        path = self.path.partition("?")[0]
        known = {"/health", "/ready", "/v1/models", "/v1/completions"}
        try:
            if method == "GET" and (self.headers.get("Content-Length") or self.headers.get("Transfer-Encoding")):
                # The body is not read, and must not be taken for the next request.
                self.close_connection = True
            if path in routes:
                with self.server.answering():
                    routes[path]()
            elif path in known:
                self._fail(HTTPStatus.METHOD_NOT_ALLOWED, f"{path}: {method} is not the method for this path")
            else:
                self._fail(HTTPStatus.NOT_FOUND, f"{path}: there are {', '.join(sorted(known))}")
        except (ConnectionError, TimeoutError) as error:
            _LOGGER.debug("%s: client left: %s", path, error)
            self.close_connection = True
        except Exception:
            # One request must not end the connection without a word; the others go on.
            _LOGGER.exception("%s %s", method, path)
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"{path}: unexpected error", "the log of rank 0 says more")

    def _health(self) -> None:
        inbox = self.server.inbox
        silent_s = inbox.silent_s
        answers = inbox.state is not State.FAILED and silent_s < self.server.silence_limit_s
        alive = not inbox.was_opened or answers
        status = HTTPStatus.OK if alive else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, {"state": inbox.state, "alive": alive, "seconds_since_ranks_answered": round(silent_s, 1)})

    def _ready(self) -> None:
        inbox = self.server.inbox
        ready = inbox.state is State.READY
        counts = {"waiting": inbox.num_waiting, "running": inbox.num_running}
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, {"state": inbox.state, "ready": ready, **counts})

    def _models(self) -> None:
        entry = {"id": self.server.model, "object": "model", "owned_by": "corebound"}
        self._answer(HTTPStatus.OK, {"object": "list", "data": [entry]})

    def _complete(self) -> None:
        if not self.server.completions.acquire(blocking=False):
            self._fail(HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_COMPLETIONS} requests are under way", "try again later")
            return
        try:
            body = self._body()
            if body is not None:
                self._answer_completion(body)
        finally:
            self.server.completions.release()

    def _answer_completion(self, body: bytes) -> None:
        inward: _Inward = queue.SimpleQueue()
        try:
            request = parse_completion(json.loads(body), self.server.model)
            tickets = [
                Ticket(prompt=prompt, params=request.params, tell=partial(_put, inward, index))
                for index, prompt in enumerate(request.prompts)
            ]
            self.server.inbox.submit(tickets)
        except RequestError as error:
            self._fail(HTTPStatus.BAD_REQUEST, error.message, error.hint)
        # Not only what json calls an error of its own: numbers of thousands of digits, nesting without end.
        except (ValueError, OverflowError, RecursionError) as error:
            self._fail(HTTPStatus.BAD_REQUEST, f"body: expected JSON: {error}")
        except UnavailableError as error:
            self._fail(HTTPStatus.SERVICE_UNAVAILABLE, error.message, error.hint)
        else:
            answer = Answer(f"cmpl-{secrets.token_hex(12)}", self.server.model)
            left = partial(_put, inward, 0, ConnectionAbortedError("it has closed the connection"))
            try:
                with self.server.hangups.watched(self.connection, left):
                    (self._stream if request.stream else self._wait)(request, inward, answer)
            finally:
                # Whatever ended it: nobody hears what is not answered by now.
                self.server.inbox.cancel(tickets)

    def _wait(self, request: CompletionRequest, inward: _Inward, answer: Answer) -> None:
        outputs: dict[int, RequestOutput] = {}
        while len(outputs) < len(request.prompts):
            index, news = _next(inward)
            if isinstance(news, CoreboundError):
                self._fail(*told(news, index, len(request.prompts)))
                return
            if isinstance(news, RequestOutput):
                outputs[index] = news
        self._answer(HTTPStatus.OK, answer.whole([outputs[index] for index in range(len(outputs))]))

    def _stream(self, request: CompletionRequest, inward: _Inward, answer: Answer) -> None:
        index, news = _next(inward)
        if isinstance(news, CoreboundError):
            # Nothing was sent yet, so the status can still tell.
            self._fail(*told(news, index, len(request.prompts)))
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        # The end of the connection ends the stream.
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        num_open = len(request.prompts)
        while True:
            if isinstance(news, CoreboundError):
                status, message, hint = told(news, index, len(request.prompts))
                self._event({"error": error_body(message, hint, status)})
                return
            if isinstance(news, RequestOutput):
                self._event(answer.piece(index, "", news.finish_reason))
                num_open -= 1
                if num_open == 0:
                    self.wfile.write(b"data: [DONE]\n\n")
                    return
            else:
                self._event(answer.piece(index, news))
            index, news = _next(inward)

    def _event(self, content: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())
        self.wfile.flush()

    def _body(self) -> bytes | None:
        """Return the body, None when it was refused."""
        lengths = self.headers.get_all("Content-Length", [])
        text = lengths[0] if len(set(lengths)) == 1 and not self.headers.get("Transfer-Encoding") else ""
        if not text.isascii() or not text.isdigit() or len(text) > 12:
            self._fail(HTTPStatus.LENGTH_REQUIRED, "Content-Length: expected the number of bytes of the body")
            return None
        if int(text) > MAX_BODY_BYTES:
            found = f"body: expected at most {MAX_BODY_BYTES} bytes, found {text:.20}"
            self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, found)
            return None
        return self.rfile.read(int(text))

    def _fail(self, status: HTTPStatus, message: str, hint: str | None = None) -> None:
        # What is left of the body would be read as the next request.
        self.close_connection = True
        self._answer(status, {"error": error_body(message, hint, status)})

    def _answer(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", str(_RETRY_AFTER_S))
        self.end_headers()
        self.wfile.write(data)


class HttpServer(ThreadingHTTPServer):
    """The server: a thread for each connection, and no more than so many of them."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, inbox: Inbox, model: str, silence_limit_s: float = 60.0) -> None:
        self.inbox = inbox
        self.model = model
        self.silence_limit_s = silence_limit_s
        self.completions = threading.BoundedSemaphore(MAX_COMPLETIONS)
        self.hangups = Hangups()
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._idle = threading.Condition()
        self._num_answering = 0
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise HostError(
                f"cannot listen on {host} port {port}: {error.strerror}", hint="choose others with --port and --host"
            ) from error

    def service_actions(self) -> None:
        """Notice clients that have left; the loop of the server calls this several times a second."""
        self.hangups.look()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, or close it when there are too many."""
        if not self._slots.acquire(blocking=False):
            _LOGGER.warning("a connection was refused: %d are open", MAX_CONNECTIONS)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            self._slots.release()  # there is no thread that would
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request as being answered."""
        with self._idle:
            self._num_answering += 1
        try:
            yield
        finally:
            with self._idle:
                self._num_answering -= 1
                self._idle.notify_all()

    def wait_for_answers(self, timeout_s: float) -> None:
        """Return when every answer has been sent, at the latest after `timeout_s`: a client may take none."""
        with self._idle:
            self._idle.wait_for(lambda: self._num_answering == 0, timeout_s)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong in a connection; the others go on."""
        is_gone = isinstance(sys.exception(), ConnectionError | TimeoutError)
        _LOGGER.log(logging.DEBUG if is_gone else logging.ERROR, "connection of %s", client_address, exc_info=True)


def _put(inward: _Inward, index: int, news: News | ConnectionError) -> None:
    inward.put((index, news))


def _next(inward: _Inward) -> tuple[int, News]:
    """Wait for the next news; raises ConnectionError when the client has left."""
    index, news = inward.get()
    if isinstance(news, ConnectionError):
        raise news
    return index, news
