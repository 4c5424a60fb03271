"""check_docstrings.py: each rule finds what it is for, and leaves alone what has nothing to say."""

from __future__ import annotations

import ast

import pytest

from unit.tools.loading import load_script

script = load_script(".ci/check_docstrings.py")

ERRORS = """
class ModelError(CoreboundError): ...
class DamagedError(errors.ModelError): ...
class Reader:
    def wrong(self, field: str) -> DamagedError: ...
"""


def found(source: str) -> list[tuple[str, str]]:
    errors = script.known_errors([ast.parse(ERRORS)])
    return [(name, problem) for _, name, problem in script.problems(ast.parse(source), errors)]


@pytest.mark.parametrize(
    ("source", "name", "problem"),
    [
        ("def run(): ...", "run", "no docstring"),
        ("class Reader:\n  '''Reads.'''\n  def run(self): ...", "Reader.run", "no docstring"),
        ("def run():\n  '''Run.'''\n  raise DamagedError('x')", "run", "raises DamagedError"),
        ("def run():\n  '''Run.'''\n  if 1:\n    raise errors.ModelError", "run", "raises ModelError"),
        ("def run(reader):\n  '''Run.'''\n  raise reader.wrong('x') from None", "run", "raises DamagedError"),
        (
            "class Reader:\n  '''Raises: ModelError once.'''\n  def run(self):\n    '''Run.'''\n    raise ModelError",
            "Reader.run",
            "raises ModelError",
        ),
        ("def add(x: Tensor) -> None:\n  '''Add.'''", "add", "no shape"),
        ("async def add() -> list[torch.Tensor | None]:\n  '''Add.'''", "add", "no shape"),
        ("def wait(timeout: float):\n  '''Wait.'''", "wait", "timeout is a time or a size"),
        ("def age(self) -> float:\n  '''Return this rank's.'''", "age", "age is a time or a size"),
        ("def age(self) -> float:\n  '''Return the task\u2019s.'''", "age", "age is a time or a size"),
        ("def age(self) -> float:\n  '''Return what it tells us.'''", "age", "age is a time or a size"),
        ("def elapsed() -> float | None:\n  '''Return it.'''", "elapsed", "elapsed is a time or a size"),
        ("class Plan:\n  '''A plan.'''\n  total_memory: int = 0", "Plan", "total_memory is a time or a size"),
    ],
)
def test_what_a_docstring_leaves_out_is_named(source: str, name: str, problem: str) -> None:
    ((where, said),) = found(source)
    assert where == name
    assert problem in said


@pytest.mark.parametrize(
    "source",
    [
        "def _own():\n  raise ModelError('x')",
        "class _Own:\n  def run(self): ...",
        "def run():\n  '''Run.\n\n  Raises: ModelError.\n  '''\n  raise ModelError('x')",
        "def run():\n  '''Run.'''\n  raise ValueError('not one of ours')",
        "def run():\n  '''Run.'''\n  def later():\n    raise ModelError('x')\n  return later",
        "def run(error):\n  '''Run.'''\n  raise error",
        "'''Raises (every reader): ModelError.'''\ndef run():\n  '''Run.'''\n  raise ModelError('x')",
        "class A:\n  '''Raises: ModelError in every one.'''\n  def run(self):\n    '''Run.'''\n    raise ModelError",
        "@cli.command()\ndef run():\n  '''Run what --help says.'''\n  raise ModelError('x')",
        "def add(x: Tensor) -> Tensor:\n  '''Add. Shapes: x and result [T, H].'''",
        "def add(x: Tensor):\n  '''Add x, of any shape.'''",
        "def add(fields: dict[str, Tensor]):\n  '''Add them by their names.'''",
        "def add(make: Callable[[], Tensor], kind: type[Tensor]):\n  '''Add what is made.'''",
        "def wait(timeout_s: float):\n  '''Wait.'''",
        "def wait(timeout: float):\n  '''Wait up to `timeout` seconds.'''",
        "def elapsed() -> float:\n  '''Return it: 5 us for a token.'''",
        "def num_blocks_for_memory(num_bytes: int) -> int:\n  '''Return how many fit.'''",
        "def elapsed() -> str:\n  '''Return it as text.'''",
    ],
)
def test_a_docstring_that_has_nothing_more_to_say_is_left_alone(source: str) -> None:
    assert found(source) == []


def test_the_package_passes() -> None:
    assert script.main() == 0
