from __future__ import annotations

import builtins
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from corebound.accelerator import get_accelerator, selection, set_accelerator
from corebound.accelerator.cpu import CpuAccelerator
from corebound.errors import ConfigError, HostError
from fixtures.accelerator_packages import write_extension


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "packages"
    directory.mkdir()
    monkeypatch.syspath_prepend(str(directory))
    # A module of the same name from another test's folder must not be taken for this one.
    for name in [name for name in sys.modules if name.startswith("device_")]:
        monkeypatch.delitem(sys.modules, name)
    return directory


def test_without_anything_else_the_cpu_is_used_and_stays() -> None:
    assert get_accelerator().name == "cpu"
    assert get_accelerator() is get_accelerator()


def test_an_extension_with_a_device_comes_before_the_cpu(packages: Path) -> None:
    write_extension(packages, "npu")
    assert get_accelerator().name == "npu"


def test_the_highest_priority_among_those_with_a_device_wins(packages: Path) -> None:
    write_extension(packages, "alpha", priority=1)
    write_extension(packages, "beta", priority=30, is_available="return False")
    write_extension(packages, "gamma", priority=20)
    assert get_accelerator().name == "gamma"


def test_equal_priority_is_not_guessed_away(packages: Path) -> None:
    write_extension(packages, "alpha")
    write_extension(packages, "beta")
    with pytest.raises(ConfigError, match=r"'alpha' \(device-alpha 1.5.*'beta' .*same priority") as caught:
        get_accelerator()
    assert caught.value.hint == "set COREBOUND_ACCELERATOR; choices: cpu, alpha, beta"


def test_the_variable_comes_before_priority_and_set_accelerator_before_the_variable(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_extension(packages, "alpha", priority=1)
    write_extension(packages, "beta", priority=2)
    monkeypatch.setenv("COREBOUND_ACCELERATOR", "alpha")
    assert get_accelerator().name == "alpha"
    own = CpuAccelerator()
    set_accelerator(own)
    assert get_accelerator() is own


def test_an_unknown_name_lists_the_choices(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_extension(packages, "npu")
    monkeypatch.setenv("COREBOUND_ACCELERATOR", "npx")
    with pytest.raises(ConfigError, match="unknown accelerator in COREBOUND_ACCELERATOR: 'npx'") as caught:
        get_accelerator()
    assert caught.value.hint == "did you mean `npu`? valid: cpu, npu"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import no_such_runtime", "ModuleNotFoundError: No module named 'no_such_runtime'"),
        ("raise SystemError('driver 3 found, 4 needed')", "SystemError: driver 3 found, 4 needed"),
        ("Other = 1", "AttributeError"),
        ("class Device: name = 'npu'", "expected a subclass of AbstractAccelerator"),
        (
            "from corebound.accelerator import AbstractAccelerator\nclass Device(AbstractAccelerator): name = 'npu'",
            "does not implement .*available_memory.*total_memory",
        ),
        ("from corebound.accelerator.cpu import CpuAccelerator as Device", "name to be 'npu', found 'cpu'"),
    ],
)
@pytest.mark.parametrize("asked", [None, "npu"])
def test_a_broken_extension_is_named_with_its_package(
    packages: Path, monkeypatch: pytest.MonkeyPatch, source: str, problem: str, asked: str | None
) -> None:
    write_extension(packages, "npu", source=source)
    if asked:
        monkeypatch.setenv("COREBOUND_ACCELERATOR", asked)
    with pytest.raises(HostError, match=rf"'npu' \(device-npu 1\.5, device_npu_module:Device\).*{problem}") as caught:
        get_accelerator()
    assert "choices: cpu, npu" in str(caught.value.hint)


def test_two_extensions_of_one_name_and_one_named_as_the_cpu_are_refused(packages: Path) -> None:
    write_extension(packages, "npu", package="device-one")
    write_extension(packages, "npu", package="device-two")
    with pytest.raises(ConfigError, match=r"two accelerator extensions are called 'npu': device-\w+ 1.5"):
        get_accelerator()
    write_extension(packages, "cpu")
    with pytest.raises(ConfigError, match=r"'cpu' .device-cpu 1.5.* belongs to Corebound"):
        get_accelerator()


def test_set_accelerator_takes_instances_of_the_interface_only() -> None:
    with pytest.raises(ConfigError, match="expected an AbstractAccelerator") as caught:
        set_accelerator(CpuAccelerator)  # type: ignore[arg-type]  # the mistake that is tested
    assert "instance" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="found 'cpu'"):
        set_accelerator("cpu")  # type: ignore[arg-type]  # the mistake that is tested


def test_an_extension_that_asks_for_the_accelerator_while_it_is_loaded_is_told_so(packages: Path) -> None:
    write_extension(packages, "npu", source="from corebound.accelerator import get_accelerator\nget_accelerator()")
    with pytest.raises(HostError, match=r"'npu'.*being loaded to decide that"):
        get_accelerator()


def test_threads_that_ask_at_once_get_one_accelerator(packages: Path) -> None:
    slow = "import time; time.sleep(0.05); return True"
    write_extension(packages, "npu", is_available=slow)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(get_accelerator())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    assert len(set(map(id, found))) == 1


def test_a_device_of_torch_without_an_extension_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(logging.getLogger("corebound"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="corebound"):
        assert get_accelerator().name == "cpu"
        get_accelerator()
    assert [record.getMessage() for record in caplog.records if "torch drives cuda" in record.getMessage()] == [
        caplog.records[0].getMessage()
    ]


# What users of DeepSpeed complained about, and what must not come back.


def test_a_runtime_without_its_device_loses_to_the_cpu(packages: Path) -> None:
    """DeepSpeed #6845: "IPEX present without XPU made cpu win or lose wrongly"."""
    write_extension(packages, "xpu", priority=100, is_available="return False")
    assert get_accelerator().name == "cpu"


def test_a_runtime_without_its_device_that_was_asked_for_is_an_error_and_not_the_cpu(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed #6845: "IPEX present without XPU made cpu win or lose wrongly"."""
    write_extension(packages, "xpu", is_available="return False")
    monkeypatch.setenv("COREBOUND_ACCELERATOR", "xpu")
    with pytest.raises(HostError, match=r"COREBOUND_ACCELERATOR=xpu: device-xpu 1\.5.* has no device"):
        get_accelerator()


def test_a_runtime_that_fails_when_asked_is_named_and_the_cpu_can_be_had_all_the_same(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed #6845: "IPEX present without XPU made cpu win or lose wrongly"."""
    write_extension(packages, "xpu", is_available="raise OSError('libze_loader.so.1')")
    with pytest.raises(HostError, match=r"'xpu'.*cannot tell.*OSError: libze_loader"):
        get_accelerator()
    monkeypatch.setenv("COREBOUND_ACCELERATOR", "cpu")
    assert get_accelerator().name == "cpu"


def test_an_error_decides_nothing_for_good(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed #5126, #5206: "accelerator decided at import and cannot be changed after"."""
    monkeypatch.setenv("COREBOUND_ACCELERATOR", "nothing")
    with pytest.raises(ConfigError):
        get_accelerator()
    monkeypatch.delenv("COREBOUND_ACCELERATOR")
    assert get_accelerator().name == "cpu"


def test_the_accelerator_can_be_changed_after_the_first_use() -> None:
    """DeepSpeed #5126, #5206: "accelerator decided at import and cannot be changed after"."""
    first, second = get_accelerator(), CpuAccelerator()
    set_accelerator(second)
    assert get_accelerator() is second is not first


def test_importing_decides_nothing_and_loads_neither_torch_nor_extensions(packages: Path) -> None:
    """DeepSpeed #5126, #5206: "accelerator decided at import and cannot be changed after"."""
    write_extension(packages, "npu", source="raise SystemError('imported')")
    script = (
        "import sys, corebound\n"
        "corebound.accelerator.AbstractAccelerator, corebound.get_accelerator\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "from corebound.accelerator import selection\n"
        "assert selection._choice.accelerator is None\n"
    )
    path = os.pathsep.join([str(packages), str(Path(selection.__file__).parents[2])])
    environ = {**os.environ, "PYTHONPATH": path, "COREBOUND_ACCELERATOR": "nothing"}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_what_a_driver_chose_is_not_handed_to_its_workers(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open-Reasoner #73: "under Ray the driver without GPU detected CPU and broke the workers"."""
    before = dict(os.environ)
    assert get_accelerator().name == "cpu"
    assert dict(os.environ) == before
    # The worker is another process with a device, whatever its driver found.
    write_extension(packages, "npu")
    monkeypatch.setattr(selection, "_choice", selection._Choice())
    assert get_accelerator().name == "npu"


def test_nothing_about_devices_is_decided_when_a_package_is_installed(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed, install time: "CPU-only build host -> GPU run host and inverse" detected different accelerators."""
    write_extension(packages, "npu", is_available="import builtins; return getattr(builtins, 'has_npu', False)")
    assert get_accelerator().name == "cpu"
    monkeypatch.setattr(builtins, "has_npu", True, raising=False)
    monkeypatch.setattr(selection, "_choice", selection._Choice())
    assert get_accelerator().name == "npu"


def test_choices_are_told_without_loading_an_extension(packages: Path) -> None:
    write_extension(packages, "npu", source="raise SystemError('imported')")
    assert selection.choices() == ("cpu", "npu")
    assert [extension.origin for extension in selection.extensions()] == ["device-npu 1.5, device_npu_module:Device"]


def test_metadata_without_a_package_still_names_the_object(monkeypatch: pytest.MonkeyPatch) -> None:
    from corebound.accelerator import extensions

    found = SimpleNamespace(name="npu", value="a.b:C", dist=None)
    monkeypatch.setattr(extensions, "entry_points", lambda group: [found])
    assert extensions.extensions()[0].origin == "a.b:C"
