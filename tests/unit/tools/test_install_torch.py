"""install_torch.py: a CUDA build is recognised before a byte of it is downloaded."""

from __future__ import annotations

import json
import subprocess

import pytest

from unit.tools.loading import load_script

script = load_script("playbooks/roles/runtime/files/install_torch.py")

CPU_REQUIREMENTS = ["filelock", "sympy>=1.13.3", 'optree>=0.13.0; extra == "optree"']
CUDA_REQUIREMENTS = [
    *CPU_REQUIREMENTS,
    'cuda-toolkit[cublas,cudart]==13.0.3; platform_system == "Linux"',
    'nvidia-nccl-cu13==2.29.7; platform_system == "Linux"',
    'triton==3.7.1; platform_system == "Linux"',
]
CUDA_URL = "https://example.org/torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl"


@pytest.mark.parametrize(
    ("metadata", "is_cuda"),
    [
        ({"version": "2.13.0+cpu", "requires_dist": CPU_REQUIREMENTS}, False),
        ({"version": "2.13.0", "requires_dist": CPU_REQUIREMENTS}, False),
        ({"version": "2.13.0", "requires_dist": None}, False),
        ({"version": "2.13.0", "requires_dist": CUDA_REQUIREMENTS}, True),
        ({"version": "2.13.0+cu130", "requires_dist": CPU_REQUIREMENTS}, True),
        ({"version": "2.13.0+xpu", "requires_dist": CPU_REQUIREMENTS}, True),
    ],
)
def test_a_build_is_told_by_its_local_version_or_its_requirements(metadata: dict[str, object], is_cuda: bool) -> None:
    assert bool(script.cuda_evidence(metadata)) is is_cuda


def test_the_refusal_names_size_packages_and_both_ways_out() -> None:
    metadata = {"version": "2.13.0", "requires_dist": CUDA_REQUIREMENTS}
    text = script.refusal(metadata, CUDA_URL, 530_000_000, script.cuda_evidence(metadata))
    assert "530 MB" in text
    assert "cuda-toolkit, nvidia-nccl-cu13, triton" in text
    assert "find-links" in text and "extra-index-url" in text and "ALLOW_CUDA_TORCH=1" in text


@pytest.fixture
def answering_pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replaces pip by one that would install the CUDA build, and records how it was called."""
    calls: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        item = {
            "metadata": {"version": "2.13.0", "requires_dist": CUDA_REQUIREMENTS},
            "download_info": {"url": CUDA_URL},
        }
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps({"install": [item]}), stderr="")

    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setattr(script, "installed_version", lambda: None)
    monkeypatch.setattr(script, "download_bytes", lambda url: None)
    return calls


def test_a_cuda_build_is_refused_and_nothing_is_installed(
    answering_pip: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["install_torch.py", "2.13.0"])
    assert script.main() == script.EXIT_REFUSED
    assert len(answering_pip) == 1 and "--dry-run" in answering_pip[0]
    assert capsys.readouterr().out == ""


def test_a_cuda_build_is_installed_when_asked_for(
    answering_pip: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["install_torch.py", "2.13.0", "--allow-cuda"])
    assert script.main() == 0
    assert "--dry-run" not in answering_pip[1]
    assert json.loads(capsys.readouterr().out) == {"changed": True, "version": "2.13.0"}


def test_torch_alone_is_installed_for_a_build_and_only_then(
    answering_pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, is_alone in ((["--no-deps"], True), ([], False)):
        monkeypatch.setattr("sys.argv", ["install_torch.py", "2.13.0", "--allow-cuda", *words])
        assert script.main() == 0
        assert ("--no-deps" in answering_pip[-1]) is is_alone


def test_a_refusal_says_how_to_allow_it_in_the_words_of_the_caller(
    answering_pip: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--how-to-allow", "ipex_allow_cuda_torch: true (inventory)"]
    monkeypatch.setattr("sys.argv", ["install_torch.py", "2.13.0", *words])
    assert script.main() == script.EXIT_REFUSED
    error = capsys.readouterr().err
    assert "ipex_allow_cuda_torch: true" in error and "runtime_allow_cuda_torch" not in error


@pytest.mark.parametrize("installed", ["2.13.0", "2.13.0+cpu"])
def test_a_torch_of_the_wanted_version_is_left_alone(
    installed: str,
    answering_pip: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "installed_version", lambda: installed)
    monkeypatch.setattr("sys.argv", ["install_torch.py", "2.13.0"])
    assert script.main() == 0
    assert json.loads(capsys.readouterr().out)["changed"] is False
    assert answering_pip == []
