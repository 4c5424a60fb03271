"""The script of the host_tuning role sets files of the kernel, and puts back exactly what was there before."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.tools.loading import load_script

tune = load_script("playbooks/roles/host_tuning/files/tune.py")

GOVERNORS = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"
SWAP = "proc/sys/vm/swappiness"
FILES = {
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance\n",
    SWAP: "60\n",
}
WANTED = {GOVERNORS: "performance", SWAP: "10"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Returns a copy of /sys and /proc."""
    for name, text in FILES.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text, encoding="utf-8")
    return tmp_path / "root"


def run(root: Path, kernel: dict[str, str] | None, *, dry: bool = False) -> dict[str, object]:
    """Returns the report of one run: settings, or None to put everything back."""
    tuner = tune.Tuner(root.parent / "kept", root, dry=dry)
    if kernel is None:
        tuner.restore()
    else:
        tuner.apply(kernel, [])
    report: dict[str, object] = tuner.report()
    return report


def contents(root: Path) -> dict[str, str]:
    return {name: (root / name).read_text(encoding="utf-8") for name in FILES}


def test_only_what_differs_is_set_and_a_second_run_changes_nothing(root: Path) -> None:
    report = run(root, WANTED)
    assert report["changes"] == [
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor: powersave -> performance",
        "/proc/sys/vm/swappiness: 60 -> 10",
    ]
    assert run(root, WANTED)["changed"] is False


def test_everything_is_put_back_even_after_other_changes(root: Path) -> None:
    run(root, WANTED)
    run(root, {**WANTED, SWAP: "1"})
    assert run(root, None)["changed"] is True
    assert contents(root) == FILES
    assert run(root, None)["changed"] is False


def test_a_setting_that_is_no_longer_wanted_is_put_back(root: Path) -> None:
    run(root, WANTED)
    report = run(root, {GOVERNORS: "performance"})
    assert report["changes"] == ["/proc/sys/vm/swappiness: 10 -> 60"]
    assert run(root, {GOVERNORS: "performance"})["changed"] is False


def test_after_a_restart_the_settings_come_back_and_the_first_values_stay_known(root: Path) -> None:
    run(root, WANTED)
    (root / SWAP).write_text("55\n", encoding="utf-8")
    assert run(root, WANTED)["changes"] == ["/proc/sys/vm/swappiness: 55 -> 10"]
    run(root, None)
    assert contents(root) == FILES


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(root: Path) -> None:
    assert run(root, WANTED, dry=True)["changed"] is True
    assert contents(root) == FILES
    assert not (root.parent / "kept").exists()


def test_a_setting_that_the_machine_lacks_is_told_and_passed_over(root: Path) -> None:
    report = run(root, {"proc/sys/kernel/numa_balancing": "0"})
    assert (report["changed"], report["problems"]) == (False, [])
    (note,) = report["notes"]  # type: ignore[misc]  # a report has lists
    assert note == "/proc/sys/kernel/numa_balancing is not there: this kernel or machine has no such setting"


def test_the_mode_in_brackets_is_the_one_that_is_set(root: Path) -> None:
    file = root / "sys/kernel/mm/transparent_hugepage/enabled"
    file.parent.mkdir(parents=True)
    file.write_text("always [madvise] never\n", encoding="utf-8")
    assert run(root, {"sys/kernel/mm/transparent_hugepage/enabled": "madvise"})["changed"] is False


def test_a_value_that_the_kernel_does_not_take_is_a_problem(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "chosen", lambda _: "60")
    tuner = tune.Tuner(root.parent, root)
    tuner.apply({SWAP: "10"}, [])
    assert tuner.report()["problems"] == ["/proc/sys/vm/swappiness: found 60 after writing, expected 10"]
