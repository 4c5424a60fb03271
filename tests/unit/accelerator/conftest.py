from __future__ import annotations

from pathlib import Path

import pytest

from corebound.accelerator import selection


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that has not chosen an accelerator, with a cache of its own."""
    monkeypatch.setattr(selection, "_choice", selection._Choice())
    monkeypatch.delenv("COREBOUND_ACCELERATOR", raising=False)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "COREBOUND_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
