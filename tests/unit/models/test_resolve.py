"""What the user may type for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from corebound.errors import ModelLoadError
from corebound.models import resolve, resolve_model


def test_a_directory_is_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


def test_demo_is_the_bundled_model_and_says_when_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resolve, "_DEMO_DIR", tmp_path / "demo-model")
    with pytest.raises(ModelLoadError, match="demo model is not in this installation"):
        resolve_model("demo")
    (tmp_path / "demo-model").mkdir()
    assert resolve_model("demo") == tmp_path / "demo-model"


@pytest.mark.parametrize("name", ["./nothing", "/no/such/place", "a b", "a/b/c"])
def test_what_cannot_be_a_hub_id_is_a_missing_directory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelLoadError, match="no such directory"):
        resolve_model(name)


def test_an_empty_name_is_not_the_working_directory() -> None:
    with pytest.raises(ModelLoadError, match="found nothing"):
        resolve_model("")


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(ModelLoadError, match="expected a directory, found a file"):
        resolve_model(str(tmp_path / "model.safetensors"))


def test_a_hub_id_is_downloaded_without_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(hub_id: str, **options: object) -> str:
        asked.update(options, hub_id=hub_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("some-org/some-model") == tmp_path
    assert asked["hub_id"] == "some-org/some-model"
    assert not any(str(pattern).endswith(".bin") for pattern in asked["allow_patterns"])


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no network\nlong story"), HFValidationError("bad id")])
def test_an_unreachable_hub_names_both_possibilities(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(hub_id: str, **options: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelLoadError) as caught:
        resolve_model("some-org/some-model")
    assert "no such directory, and not to be had from the Hugging Face hub" in caught.value.message
    assert "long story" not in caught.value.message
    assert str(caught.value.hint).startswith("give the path of a local directory")
    with pytest.raises(ModelLoadError) as caught:
        resolve_model("dmeo")
    assert str(caught.value.hint).startswith("did you mean `demo`? give the path")
