"""Which torch the native operators fit, told before they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from corebound import native
from corebound.errors import KernelError


def test_without_a_note_of_the_build_the_operators_fit_every_torch_from_the_oldest_stable_one(tmp_path: Path) -> None:
    abi = native.torch_abi(tmp_path)
    assert [abi.fits(version) for version in ("2.9.1", "2.10.0+cpu", "2.13.0", "3.0", "unknown")] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert str(abi) == "torch 2.10 or later"


def test_a_classic_build_fits_its_own_torch_only_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "torch_abi.json").write_text('{"abi": "classic", "torch": "2.8"}', encoding="utf-8")
    abi = native.torch_abi(tmp_path)
    assert [abi.fits(version) for version in ("2.8.0", "2.8.1+cu128", "2.7.1", "2.13.0", "2.80")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert "torch 2.8 and no other" in str(abi)
    assert "docs/ipex.md" in native.wrong_torch_hint(abi)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"torch": 2.8}', '{"torch": "2"}', '{"torch": "two.eight"}'])
def test_a_damaged_note_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "torch_abi.json").write_text(text, encoding="utf-8")
    with pytest.raises(KernelError, match=r"torch_abi\.json: expected the torch they were built for"):
        native.torch_abi(tmp_path)


def test_operators_for_another_torch_are_refused_before_they_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "core_library", lambda: None)
    monkeypatch.setattr(native, "_require", lambda path: None)
    monkeypatch.setattr(native, "torch_abi", lambda: native.TorchAbi(is_stable=False, version=(2, 8)))
    monkeypatch.setattr(torch.ops, "load_library", lambda path: pytest.fail("loaded"))
    with pytest.raises(KernelError, match=r"needs torch 2\.8 and no other .*, found torch"):
        native.load_torch_ops.__wrapped__()
