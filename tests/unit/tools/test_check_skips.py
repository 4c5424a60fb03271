"""check_skips.py: a suite that could have run here must not be skipped in silence."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from unit.tools.loading import load_script

TESTS = Path(__file__).parents[2]
script = load_script(".ci/check_skips.py")

REPORT = """<testsuites><testsuite>
<testcase classname="tests.unit.a" name="runs"/>
<testcase classname="tests.unit.a" name="needs_amx"><skipped message="this machine lacks amx_tile"/></testcase>
<testcase classname="tests.unit.b" name="another_form"><skipped message="native library missing"/></testcase>
<testcase classname="tests.unit.b" name="needs_library"><skipped message="Skipped: this machine lacks
the native library, to be had with make native"/></testcase>
</testsuite></testsuites>"""


def test_only_the_machine_excuses_a_skip() -> None:
    assert script.unaccepted_skips(REPORT) == [
        "tests.unit.b::another_form: native library missing",
        "tests.unit.b::needs_library: Skipped: this machine lacks the native library, to be had with make native",
    ]


def reasons_of(path: Path) -> Iterator[tuple[int, ast.expr]]:
    """Yields the line and the reason of every skip that a file of tests writes down."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if ast.unparse(node.func) in ("pytest.skip", "pytest.importorskip"):
                yield node.lineno, node.args[0]
            elif node.func.attr == "skipif":
                yield node.lineno, next(word.value for word in node.keywords if word.arg == "reason")


def test_every_reason_to_skip_says_what_the_machine_lacks() -> None:
    written = [(path, line, reason) for path in sorted(TESTS.rglob("*.py")) for line, reason in reasons_of(path)]
    texts = [(path, line, ast.unparse(reason)) for path, line, reason in written if not is_name(reason)]
    assert len(texts) > 20
    other = [f"{path}:{line}: {text}" for path, line, text in texts if text.lstrip("f")[1:19] != "this machine lacks"]
    assert other == []


def is_name(reason: ast.expr) -> bool:
    """Returns whether a reason is made elsewhere: by why_not() of the lab and the cluster, or by an error."""
    return isinstance(reason, ast.Name | ast.Call)
