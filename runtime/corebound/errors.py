"""The exception family of Corebound: one class per kind of failure, each with an exit code and a hint."""

from __future__ import annotations

EXIT_OK = 0
EXIT_CONFIG = 2
EXIT_HOST = 3
EXIT_LAUNCH = 4
EXIT_COMM = 5
EXIT_MODEL = 6


class CoreboundError(Exception):
    """Base of every error that a user can cause or must act on.

    The message says what failed, where, what was expected and what was found, in that order. The hint names the
    next step and is printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            # Where a user's own script does not catch it, the interpreter prints notes below the message.
            self.add_note(f"hint: {hint}")

    def render(self) -> str:
        """Return the text for a terminal: the message and, after a blank line, the hint."""
        text = f"error: {self.message}"
        return f"{text}\n\nhint: {self.hint}" if self.hint else text


class ConfigError(CoreboundError):
    """A flag, key, file or value that the user gave is wrong."""

    exit_code = EXIT_CONFIG


class RequestError(ConfigError):
    """A generation request that cannot be served as asked."""


class HostError(CoreboundError):
    """A machine lacks what a launch needs."""

    exit_code = EXIT_HOST


class LaunchError(CoreboundError):
    """Ranks could not be started, or did not all join."""

    exit_code = EXIT_LAUNCH


class CommError(CoreboundError):
    """A collective failed."""

    exit_code = EXIT_COMM


class CommTimeoutError(CommError):
    """A collective did not complete in time."""


class PeerLostError(CommError):
    """A member of a group died during a collective."""


class ModelError(CoreboundError):
    """A model directory cannot be used."""

    exit_code = EXIT_MODEL


class ModelLoadError(ModelError):
    """A file of a model is missing, damaged or of an unknown kind."""


class ShardingError(ModelError):
    """A model cannot be split as asked."""


class KernelError(CoreboundError):
    """A native kernel is missing, cannot run here, or was called with wrong arguments."""

    exit_code = EXIT_MODEL
