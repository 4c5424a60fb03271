from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from corebound.launcher.handshake import answer, new_secret, question


def met(agent_secret: str, launcher_secret: str, identity: str = "node-3") -> tuple[BaseException | None, object]:
    ours, theirs = socket.socketpair()
    with ThreadPoolExecutor(1) as pool:
        agent = pool.submit(answer, theirs, agent_secret, identity)
        try:
            found: object = question(ours, launcher_secret)
        except (OSError, ValueError) as error:
            found = error
        ours.close()
        return agent.exception(5), found


def test_those_who_share_a_secret_know_each_other() -> None:
    secret = new_secret()
    assert met(secret, secret) == (None, "node-3")
    assert new_secret() != secret


def test_an_agent_tells_nothing_to_a_launcher_that_does_not_know_the_secret() -> None:
    agent_error, found = met(new_secret(), new_secret())
    assert isinstance(agent_error, ValueError) and "not the launcher of this job" in str(agent_error)
    assert isinstance(found, (OSError, ValueError))


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b"corebound-link-1 0\n", b"x" * 2000, b""])
def test_strangers_are_refused(words: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(words)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ValueError, match=r"not an agent|middle of the handshake"):
            question(ours, new_secret())


def test_an_overheard_conversation_is_of_no_use_a_second_time() -> None:
    secret = new_secret()
    ours, theirs = socket.socketpair()
    tap: list[bytes] = []

    class Tapped(socket.socket):
        def sendall(self, data: bytes, *args: int) -> None:  # type: ignore[override]  # flags are not looked at
            tap.append(bytes(data))
            super().sendall(data, *args)

    tapped = Tapped(fileno=theirs.detach())
    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(question, ours, secret)
        answer(tapped, secret, "1")
        assert heard.result(5) == "1"
    again, replayer = socket.socketpair()
    with again, replayer, pytest.raises(ValueError, match="does not know the secret"):
        replayer.sendall(b"".join(tap))
        question(again, secret)
