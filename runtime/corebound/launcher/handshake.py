"""Launcher and agent prove to each other, over a connection that anyone could have opened, that they share a secret.

The secret itself never crosses it. Both sides prove: an agent carries out what it is told, so it must not listen to a
stranger who took the launcher's port.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
from typing import Literal

HANDSHAKE_TIMEOUT_S = 5.0
_HELLO = "corebound-link-1"
_MAX_LINE_BYTES = 600
_NONCE_BYTES = 16


def new_secret() -> str:
    """Return a secret for one launch."""
    return secrets.token_hex(32)


def answer(connection: socket.socket, secret: str, identity: str) -> None:
    """Introduce this agent, known as `identity`, to the launcher.

    Raises: ValueError when the other side is not our launcher; OSError when it cannot be heard.
    """
    connection.settimeout(HANDSHAKE_TIMEOUT_S)
    own = secrets.token_hex(_NONCE_BYTES)
    _send(connection, f"{_HELLO} {identity} {own}")
    theirs, _, proof = _receive(connection).partition(" ")
    if not hmac.compare_digest(proof, _proof(secret, "launcher", identity, own, theirs)):
        raise ValueError("what answers is not the launcher of this job")
    _send(connection, _proof(secret, "agent", identity, own, theirs))


def question(connection: socket.socket, secret: str) -> str:
    """Return the identity of the agent that connected.

    Raises: ValueError when it is none of ours; OSError when it cannot be heard.
    """
    connection.settimeout(HANDSHAKE_TIMEOUT_S)
    words = _receive(connection).split(" ")
    if len(words) != 3 or words[0] != _HELLO:
        raise ValueError("what connected is not an agent")
    identity, theirs = words[1], words[2]
    own = secrets.token_hex(_NONCE_BYTES)
    _send(connection, f"{own} {_proof(secret, 'launcher', identity, theirs, own)}")
    if not hmac.compare_digest(_receive(connection), _proof(secret, "agent", identity, theirs, own)):
        raise ValueError("an agent does not know the secret of this launch")
    connection.settimeout(None)
    return identity


def _proof(secret: str, who: Literal["agent", "launcher"], identity: str, agent_nonce: str, launcher_nonce: str) -> str:
    text = f"{who} {identity} {agent_nonce} {launcher_nonce}"
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def _send(connection: socket.socket, line: str) -> None:
    connection.sendall(line.encode() + b"\n")


def _receive(connection: socket.socket) -> str:
    """Return the next line, read byte by byte: what follows belongs to another reader."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte or len(line) > _MAX_LINE_BYTES:
            raise ValueError("the connection ended in the middle of the handshake")
        line += byte
    return line[:-1].decode("ascii", errors="replace")
