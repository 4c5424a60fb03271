"""The frame of a process that is one rank of a command of ours: its log, its group, its errors, its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import NoReturn

from corebound.comm.base import Collectives
from corebound.comm.launch_group import join_launch
from corebound.comm.rank_log import set_up_log
from corebound.comm.shm_handshake import SharedMemoryUnavailableError
from corebound.config import env
from corebound.errors import EXIT_OK, CoreboundError, RequestError
from corebound.logs import get_logger

_LOGGER = get_logger(__name__)
_EXIT_FAILED = 1
_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
# Raised on every rank with the same text, so rank 0 speaks for all.
_COMMON_ERRORS = (RequestError, SharedMemoryUnavailableError)


def run_rank(work: Callable[[Collectives], None], prepare: Callable[[], None] = lambda: None) -> int:
    """Return the exit code of this rank after `prepare()`, and `work(collectives)` on the group of the whole launch.

    An error is printed before the group is closed: the other ranks learn of it by that, so the one that has the cause
    speaks first.
    """
    with ExitStack() as stack:
        try:
            set_up_log()
            prepare()
            work(stack.enter_context(closing(join_launch())))
        except _COMMON_ERRORS as error:
            return _print(error) if _is_first() else EXIT_OK
        except CoreboundError as error:
            return _print(error)
        except KeyboardInterrupt:
            _LOGGER.warning("interrupted")
            return _EXIT_INTERRUPTED
        except Exception:
            _LOGGER.exception("unexpected error")
            return _EXIT_FAILED
    return EXIT_OK


def leave(exit_code: int) -> NoReturn:
    """End this process. After a failure without the interpreter's farewells, which can take seconds.

    The peers have noticed by now that the group was closed, and end too: the launch takes the rank for the cause whose
    exit code comes first.
    """
    if exit_code == EXIT_OK:
        raise SystemExit(EXIT_OK)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _is_first() -> bool:
    place = env.rank_environment()
    return place is None or place.rank == 0


def _print(error: CoreboundError) -> int:
    sys.stderr.write(f"{error.render()}\n")
    sys.stderr.flush()
    return error.exit_code
