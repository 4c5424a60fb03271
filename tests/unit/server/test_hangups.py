"""Clients that go away while they wait: a real socket is closed, and the engine stops working for it."""

import json
import socket
import threading

import pytest

from corebound.engine.engine import Engine
from corebound.engine.inbox import Inbox
from corebound.engine.request import Request
from corebound.engine.service import Service
from corebound.server.hangups import Hangups
from corebound.server.http import HttpServer
from multiproc.launches import eventually
from unit.engine.engine_fakes import FakeRunner, LetterTokenizer, continuation, make_scheduler

NUM_BLOCKS = 4096
ENDLESS = 15_000


class Unhurried(FakeRunner):
    """Leaves the processor to others now and then; an endless request then takes minutes."""

    def run(self, inputs, copies):
        threading.Event().wait(0.002)
        return super().run(inputs, copies)


class Server:
    """HTTP, service and engine in one process; the model is of a few lines."""

    def __init__(self):
        self.inbox = Inbox()
        self.scheduler = make_scheduler(NUM_BLOCKS, 4)
        engine = Engine(Unhurried(4, broken=lambda seen: seen == [3, 96]), self.scheduler, LetterTokenizer())
        service = Service(engine, self._request, self.inbox, lambda: None, heartbeat_s=1, max_running=64)
        self.http = HttpServer("127.0.0.1", 0, self.inbox, "demo")
        self.threads = [
            threading.Thread(target=self.http.serve_forever, args=(0.02,)),
            threading.Thread(target=service.run),
        ]
        self.inbox.open()
        for thread in self.threads:
            thread.start()

    def _request(self, number, ticket):
        return Request(id=number, prompt="", prompt_token_ids=tuple(ticket.prompt), params=ticket.params)

    def connect(self, **body):
        """Returns a connection on which a request was sent."""
        client = socket.create_connection(("127.0.0.1", self.http.server_address[1]), timeout=60)
        data = json.dumps({"temperature": 0, **body}).encode()
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        return client

    def complete(self, **body):
        """Returns status and body of an answer."""
        with self.connect(**body) as client:
            said = client.makefile("rb").read() if body.get("stream") else read_answer(client)
        head, _, rest = said.partition(b"\r\n\r\n")
        return int(head.split()[1]), rest.decode()

    def is_idle(self):
        return (
            self.inbox.num_running == 0
            and not self.scheduler.has_work
            and self.scheduler.allocator.num_free == NUM_BLOCKS
        )

    def close(self):
        self.http.shutdown()
        self.inbox.drain()
        for thread in self.threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self.threads)
        self.http.server_close()


def read_answer(client):
    said = b""
    while b"\r\n\r\n" not in said:
        said += client.recv(65536)
    head = said.partition(b"\r\n\r\n")[0].decode().lower()
    length = int(head.partition("content-length: ")[2].split()[0])
    while len(said) < len(head) + 4 + length:
        said += client.recv(65536)
    return said


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


def letters(prompt, count):
    return LetterTokenizer().decode(continuation(prompt, count))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_closes_its_connection_ends_its_request_and_no_other(server, stream):
    other = {}
    neighbour = threading.Thread(
        target=lambda: other.update(enumerate(server.complete(prompt=[3, 5], max_tokens=400, ignore_eos=True)))
    )
    neighbour.start()
    client = server.connect(prompt=[[1, 2], [1, 4]], max_tokens=ENDLESS, stream=stream)
    if stream:
        assert b"data: " in client.recv(65536) + client.recv(65536)
    assert eventually(lambda: server.inbox.num_running == 3, 30)
    client.close()
    assert eventually(lambda: server.inbox.num_running <= 1, 30)
    neighbour.join(60)
    assert other[0] == 200
    assert json.loads(other[1])["choices"][0]["text"] == letters([3, 5], 400)
    assert eventually(server.is_idle, 30)


def test_a_client_that_leaves_while_its_request_waits_is_not_waited_for(server):
    with server.connect(prompt=[[1, number] for number in range(64)], max_tokens=ENDLESS) as ahead:
        assert eventually(lambda: server.inbox.num_running == 64, 30)
        client = server.connect(prompt=[9], max_tokens=4)
        assert eventually(lambda: server.inbox.num_waiting == 1, 30)
        client.close()
        assert eventually(lambda: server.inbox.num_waiting == 0, 30)
        assert server.inbox.num_running == 64
        ahead.close()
        assert eventually(server.is_idle, 30)


def test_one_connection_may_ask_again_and_again(server):
    with server.connect(prompt=[1], max_tokens=3) as client:
        first = read_answer(client)
        data = b'{"prompt": [1], "max_tokens": 3, "temperature": 0}'
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(data)
        # The third lies in wait while the second is answered: what a client sends is no sign that it left.
        client.sendall((head + data) * 2)
        second = read_answer(client)
        assert first.count(b'"completion_tokens": 3') == 1
        assert second.count(b'"completion_tokens": 3') >= 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_that_gives_no_numbers_fails_alone_and_says_where(server, stream):
    status, said = server.complete(prompt=[[1, 2], [3, 96]], max_tokens=5, stream=stream)
    expected = "prompt 1: the model's logits at position 1 are not numbers (NaN)"
    assert expected in said
    assert '"type": "server_error", "code": 500' in said
    if not stream:
        assert status == 500
    assert json.loads(server.complete(prompt=[3, 5], max_tokens=9)[1])["choices"][0]["text"] == letters([3, 5], 9)
    assert eventually(server.is_idle, 30)


def test_only_a_connection_that_was_closed_is_told_of_and_only_once():
    hangups, told = Hangups(), []
    ours, theirs = socket.socketpair()
    others = socket.socketpair()
    with (
        hangups.watched(ours, lambda: told.append("first")),
        hangups.watched(others[0], lambda: told.append("second")),
    ):
        theirs.sendall(b"more")
        hangups.look()
        assert told == []
        theirs.close()
        hangups.look()
        hangups.look()
        assert told == ["first"]
    others[1].close()
    hangups.look()
    assert told == ["first"]
    for one in (ours, others[0]):
        one.close()
