"""The HTTP side before an engine of a few lines: status, form, limits, clients that behave badly."""

import http.client
import json
import socket
import threading

import pytest

from corebound.engine.inbox import Inbox
from corebound.engine.request import RequestOutput
from corebound.errors import HostError, RequestError
from corebound.server.http import MAX_BODY_BYTES, HttpServer


class FakeEngine:
    """Answers every ticket of an inbox at once: the prompt in capitals, a letter at a time."""

    def __init__(self):
        self.inbox = Inbox()
        self.server = HttpServer("127.0.0.1", 0, self.inbox, "demo", silence_limit_s=0.2)
        self.port = self.server.server_address[1]
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self.server.serve_forever), threading.Thread(target=self._work)]
        for thread in self.threads:
            thread.start()

    def _work(self):
        while not self.stopped.is_set():
            for ticket in self.inbox.take(8, 0.02):
                if ticket.prompt == "bad":
                    ticket.tell(RequestError("prompt: cannot run"))
                    continue
                for letter in ticket.prompt.upper():
                    ticket.tell(letter)
                ticket.tell(
                    RequestOutput(
                        prompt=ticket.prompt,
                        text=ticket.prompt.upper(),
                        token_ids=(1,),
                        num_prompt_tokens=2,
                        finish_reason="stop",
                    )
                )

    def close(self):
        self.stopped.set()
        self.server.shutdown()
        for thread in self.threads:
            thread.join(20)
        self.server.server_close()

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            data = json.dumps(body) if isinstance(body, dict | list) else body
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def complete(self, **body):
        status, text = self.request("POST", "/v1/completions", body)
        return status, json.loads(text)


@pytest.fixture
def fake():
    engine = FakeEngine()
    yield engine
    engine.close()


def test_it_lives_before_it_is_ready_and_is_ready_when_it_takes_requests(fake):
    assert fake.request("GET", "/health")[0] == 200
    assert fake.request("GET", "/ready")[0] == 503
    assert fake.complete(prompt="a")[0] == 503
    fake.inbox.open()
    assert fake.request("GET", "/ready")[0] == 200
    fake.inbox.drain()
    assert fake.request("GET", "/ready")[0] == 503


def test_it_is_no_longer_healthy_when_ranks_do_not_answer(fake):
    fake.inbox.open()
    fake.inbox.beat()
    assert fake.request("GET", "/health")[0] == 200
    threading.Event().wait(0.3)
    status, text = fake.request("GET", "/health")
    assert status == 503
    assert json.loads(text)["alive"] is False


def test_prompts_are_answered_in_order(fake):
    fake.inbox.open()
    status, answer = fake.complete(prompt=["one", "two"], model="demo")
    assert status == 200
    assert [choice["text"] for choice in answer["choices"]] == ["ONE", "TWO"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}


def test_a_stream_has_every_piece_its_reason_and_an_end(fake):
    fake.inbox.open()
    status, text = fake.request("POST", "/v1/completions", {"prompt": ["ab", "c"], "stream": True})
    assert status == 200
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    texts = {0: "", 1: ""}
    for event in events:
        (choice,) = json.loads(event)["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == {0: "AB", 1: "C"}
    assert [json.loads(event)["choices"][0]["finish_reason"] for event in events].count("stop") == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_cannot_run_is_the_client_s_mistake(fake, stream):
    fake.inbox.open()
    status, answer = fake.complete(prompt="bad", stream=stream)
    assert status == 400
    assert answer["error"] == {
        "message": "prompt: cannot run",
        "hint": None,
        "type": "invalid_request_error",
        "code": 400,
    }


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("GET", "/", None, 404, "/v1/completions"),
        ("GET", "/v1/completions", None, 405, "GET is not the method"),
        ("POST", "/ready", b"", 405, "POST is not the method"),
        ("POST", "/v1/completions", b"{", 400, "expected JSON"),
        ("POST", "/v1/completions", b"\xff", 400, "expected JSON"),
        ("POST", "/v1/completions", b"[" * 100000, 400, "expected JSON"),
        ("POST", "/v1/completions", b"[]", 400, "expected a JSON object"),
        ("POST", "/v1/completions", b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}", 400, "expected JSON"),
        ("POST", "/v1/completions", b'{"prompt": "a", "temperature": 1' + b"0" * 400 + b"}", 400, "temperature"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(fake, method, path, body, status, said):
    found, text = fake.request(method, path, body)
    assert found == status
    assert said in json.loads(text)["error"]["message"]


def test_a_body_without_length_or_of_too_many_bytes_is_not_read(fake):
    assert fake.request("POST", "/v1/completions", None, {"Content-Length": str(MAX_BODY_BYTES + 1)})[0] == 413
    assert fake.request("POST", "/v1/completions", None, {"Content-Length": "-1"})[0] == 411
    assert fake.request("POST", "/v1/completions", iter([b"x"]), {"Transfer-Encoding": "chunked"})[0] == 411


def test_what_could_be_taken_for_another_request_is_not(fake):
    smuggled = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
    heads = [
        b"GET /ready HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(smuggled),
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ]
    for head in heads:
        with socket.create_connection(("127.0.0.1", fake.port), timeout=20) as client:
            client.sendall(head + smuggled)
            said = b""
            while data := client.recv(4096):
                said += data
        assert said.count(b"HTTP/1.1 ") == 1


def test_probes_are_answered_when_no_more_completions_are_taken(fake):
    fake.inbox.open()
    while fake.server.completions.acquire(blocking=False):
        pass
    assert fake.complete(prompt="a")[0] == 503
    assert fake.request("GET", "/health")[0] == 200


def test_a_client_that_leaves_disturbs_nobody(fake):
    fake.inbox.open()
    with socket.create_connection(("127.0.0.1", fake.port)) as client:
        body = json.dumps({"prompt": "x" * 200, "stream": True}).encode()
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert fake.complete(prompt="still")[1]["choices"][0]["text"] == "STILL"


def test_waiting_for_answers_ends_when_none_is_under_way(fake):
    fake.inbox.open()
    assert fake.complete(prompt="a")[0] == 200
    fake.server.wait_for_answers(timeout_s=20)


def test_a_port_that_is_taken_is_an_error_with_the_flag(fake):
    with pytest.raises(HostError, match=f"cannot listen on 127.0.0.1 port {fake.port}") as caught:
        HttpServer("127.0.0.1", fake.port, fake.inbox, "demo")
    assert "--port" in caught.value.render()
