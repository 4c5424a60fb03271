"""check_skips.py: a suite that could have run here must not be skipped in silence."""

from __future__ import annotations

from unit.tools.loading import load_script

script = load_script(".ci/check_skips.py")

REPORT = """<testsuites><testsuite>
<testcase classname="tests.unit.a" name="runs"/>
<testcase classname="tests.unit.a" name="needs_amx"><skipped message="this machine lacks amx_tile"/></testcase>
<testcase classname="tests.unit.b" name="needs_library"><skipped message="native library missing"/></testcase>
</testsuite></testsuites>"""


def test_only_the_machine_excuses_a_skip() -> None:
    assert script.unaccepted_skips(REPORT) == ["tests.unit.b::needs_library: native library missing"]
