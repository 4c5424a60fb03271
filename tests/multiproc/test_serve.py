"""`corebound serve` on real ranks: right answers, draining, and its end when a rank is lost."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import corebound
from fixtures.tiny_models import build_llama
from multiproc.launches import Launch, eventually

pytestmark = [pytest.mark.native, pytest.mark.multiproc, pytest.mark.timeout(300)]
# Tokens of an answer that is still on its way a third of a second later, at half a millisecond each.
LONG = 1500
START_S = 120.0


# A prompt with this token gives logits that are not numbers.
BROKEN = 50


class Served:
    """A running server of a model, by default the demo model, on two ranks."""

    def __init__(self, cwd: Path, model: str = "demo", **environ: str) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        words = ["serve", "--model", model, "--num-accelerators", "2", "--dtype", "float32", "--port", str(self.port)]
        self.launch = Launch(sys.executable, "-m", "corebound", *words, cwd=cwd, env=environ)

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, response.read().decode()

    def num_running(self) -> int:
        return int(json.loads(self.request("GET", "/ready")[1])["running"])

    def is_ready(self) -> bool:
        assert self.launch.process.poll() is None, self.launch.process.communicate()
        try:
            return self.request("GET", "/ready")[0] == 200
        except OSError:
            return False

    def complete(self, prompt: Any, **fields: Any) -> dict[str, Any]:
        status, text = self.request("POST", "/v1/completions", {"prompt": prompt, "temperature": 0, **fields})
        answer: dict[str, Any] = json.loads(text)
        assert status == 200, answer
        return answer

    def ranks(self) -> list[int]:
        """Returns the process ids of the ranks, rank 0 first."""
        found = [pid for pid, command in self.launch.processes().items() if "server.rank_main" in command]
        return sorted(found, key=lambda pid: b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())


@contextmanager
def served(cwd: Path, model: str = "demo", **environ: str) -> Iterator[Served]:
    server = Served(cwd, model, **environ)
    try:
        assert eventually(server.is_ready, START_S)
        yield server
    finally:
        server.launch.kill_all()
        if server.launch.process.poll() is None:
            server.launch.process.kill()
        server.launch.process.communicate()


def test_it_answers_as_generate_does_streams_and_finishes_what_runs_when_it_is_stopped(tmp_path: Path) -> None:
    prompts = ["The old ship", "A young woman", "In the morning"]
    params = corebound.SamplingParams(max_new_tokens=12)
    expected = [output.text for output in corebound.LLM("demo", dtype="float32").generate(prompts, params)]
    with served(tmp_path) as server:
        answer = server.complete(prompts, max_tokens=12)
        assert [choice["text"] for choice in answer["choices"]] == expected
        together: dict[int, str] = {}
        threads = [
            threading.Thread(
                target=lambda number=number: together.update(
                    {number: server.complete(prompts[number % 3], max_tokens=12)["choices"][0]["text"]}
                )
            )
            for number in range(9)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert together == {number: expected[number % 3] for number in range(9)}
        streamed = server.request(
            "POST", "/v1/completions", {"prompt": prompts[0], "temperature": 0, "max_tokens": 12, "stream": True}
        )[1]
        events = [json.loads(line[6:]) for line in streamed.split("\n\n") if line.startswith("data: {")]
        assert "".join(event["choices"][0]["text"] for event in events) == expected[0]
        assert streamed.endswith("data: [DONE]\n\n")
        status, said = server.request("POST", "/v1/completions", {"prompt": ""})
        assert status == 400
        assert "prompt is empty" in said

        late: dict[str, Any] = {}
        long = threading.Thread(
            target=lambda: late.update(server.complete([1, 2, 3], max_tokens=LONG, ignore_eos=True))
        )
        long.start()
        assert not eventually(lambda: bool(late), 0.3)
        server.launch.process.send_signal(signal.SIGTERM)
        long.join(60)
        assert late["usage"]["completion_tokens"] == LONG
        assert server.launch.end() == 0
        server.launch.assert_nothing_left()


@pytest.fixture(scope="module")
def broken_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model with room for long answers, which overflows after one token, though all weights are numbers."""
    path = build_llama(
        tmp_path_factory.mktemp("broken") / "model", tied=False, tokenizer=True, max_position_embeddings=200_000
    )
    tensors = load_file(path / "model.safetensors")
    layer = "model.layers.0."
    # Dimension 0 is that token's own, up to the MLP of the first layer, which takes its third power beyond float32.
    tensors["model.embed_tokens.weight"][:, 0] = 0
    tensors["model.embed_tokens.weight"][BROKEN, 0] = 2.0**20
    tensors[f"{layer}self_attn.o_proj.weight"][0] = 0
    for name in ("gate_proj", "up_proj"):
        tensors[f"{layer}mlp.{name}.weight"][:] = 0
        tensors[f"{layer}mlp.{name}.weight"][:, 0] = 2.0**40
    tensors[f"{layer}mlp.down_proj.weight"][1] = 2.0**40
    # It is never the best token, and not one that others could write by chance.
    tensors["lm_head.weight"][BROKEN] = 0
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return str(path)


def test_who_leaves_and_who_fails_is_alone_in_it(tmp_path: Path, broken_model: str) -> None:
    with served(tmp_path, broken_model) as server:
        ask: dict[str, Any] = {"temperature": 0.02, "seed": 7, "max_tokens": 300, "ignore_eos": True}
        alone = server.complete([3, 4, 5], **ask)["choices"]
        # Minutes of work, for two clients that will not wait for it.
        endless = {"prompt": [9, 8], "max_tokens": 150_000, "ignore_eos": True, "temperature": 0}
        clients = []
        for stream in (True, False):
            body = json.dumps({**endless, "stream": stream}).encode()
            clients.append(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
            clients[-1].sendall(head % len(body) + body)
        assert clients[0].recv(4096)
        assert eventually(lambda: server.num_running() == 2, 60)
        together: list[Any] = []
        neighbour = threading.Thread(target=lambda: together.append(server.complete([3, 4, 5], **ask)["choices"]))
        neighbour.start()
        status, said = server.request("POST", "/v1/completions", {"prompt": [3, 4, BROKEN], "max_tokens": 5})
        assert status == 500, said
        error = json.loads(said)["error"]
        assert error["message"].startswith("the model's logits at position 2 are not numbers (NaN), after 3 tokens")
        for client in clients:
            client.close()
        neighbour.join(60)
        assert together == [alone]
        assert eventually(lambda: server.num_running() == 0, 20)
        # What NaN was in is used again.
        assert server.complete([3, 4, 5], **ask)["choices"] == alone
        server.launch.process.send_signal(signal.SIGTERM)
        assert server.launch.end() == 0
        assert "ended alone: the model's logits at position 2" in server.launch.stderr
        server.launch.assert_nothing_left()


def test_a_killed_rank_ends_it_and_is_named(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        os.kill(server.ranks()[1], signal.SIGKILL)
        assert server.launch.end() == 137
        assert "rank 1" in server.launch.stderr
        server.launch.assert_nothing_left()


def test_a_rank_that_stands_still_ends_it_though_nobody_asks(tmp_path: Path) -> None:
    with served(tmp_path, COREBOUND_COMM_TIMEOUT_S="10") as server:
        os.kill(server.ranks()[1], signal.SIGSTOP)
        # 5 s until they are asked, 10 s to answer, and no 30 s to finish what nobody can.
        assert server.launch.end(timeout_s=35) == 5
        assert "rank" in server.launch.stderr
        server.launch.assert_nothing_left(timeout_s=20)
