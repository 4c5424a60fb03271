"""Digests: any flipped bit of a listed file is found and the file named."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import pytest

from corebound.errors import ModelLoadError
from corebound.models import model_listing, verify_manifest, write_manifest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("not part of the model")
    return tmp_path


def test_an_unchanged_model_is_verified(model: Path) -> None:
    write_manifest(model)
    calls: list[tuple[int, int]] = []
    result = verify_manifest(model, progress=lambda done, total: calls.append((done, total)))
    assert result is not None
    assert (result.num_files, result.num_bytes, result.unlisted) == (2, 16386, ())
    assert calls[-1] == (16386, 16386)


def test_a_single_flipped_bit_is_found(model: Path) -> None:
    write_manifest(model)
    file = model / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[12345] ^= 1
    file.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors: damaged: expected SHA-256"):
        verify_manifest(model)


def test_a_whole_model_that_is_not_the_launchers_is_found(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write_manifest(model)
    listing = model_listing(model)
    other = tmp_path_factory.mktemp("other")
    (other / "model.safetensors").write_bytes(bytes(range(255, -1, -1)) * 64)
    (other / "config.json").write_text("{}")
    write_manifest(other)
    assert verify_manifest(other) is not None
    with pytest.raises(ModelLoadError, match=r"other\d*/model\.safetensors: damaged: expected SHA-256"):
        verify_manifest(other, listing=listing)


def test_sizes_are_compared_even_when_the_model_is_too_large_to_read(model: Path) -> None:
    write_manifest(model)
    assert verify_manifest(model, max_bytes=100) is None
    (model / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelLoadError, match=r"model\.safetensors: expected 16384 bytes, found 5"):
        verify_manifest(model, max_bytes=100)


def test_a_listed_file_must_be_there(model: Path) -> None:
    write_manifest(model)
    (model / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"config\.json: missing, but listed"):
        verify_manifest(model)


def test_a_model_without_digests_is_left_alone(model: Path) -> None:
    assert verify_manifest(model) is None


def test_files_that_nothing_vouches_for_are_reported(model: Path) -> None:
    write_manifest(model)
    (model / "extra.json").write_text("{}")
    result = verify_manifest(model)
    assert result is not None
    assert result.unlisted == ("extra.json",)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"files": {}},
        {"files": {"config.json": "abc"}},
        {"files": {"config.json": {"sha256": "abc", "bytes": 2}}},
        {"files": {"../config.json": {"sha256": "0" * 64, "bytes": 2}}},
        {"files": {"config.json": {"sha256": "0" * 64, "bytes": "2"}}},
    ],
)
def test_a_damaged_manifest_is_an_error(model: Path, content: object) -> None:
    (model / "corebound-manifest.json").write_text(json.dumps(content))
    with pytest.raises(ModelLoadError, match=r"corebound-manifest\.json"):
        verify_manifest(model)


def test_blobs_of_the_hub_cache_are_their_own_digests(tmp_path: Path) -> None:
    content = b"weights"
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    blob = blobs / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    (snapshot / "model.safetensors").symlink_to(blob)
    result = verify_manifest(snapshot)
    assert result is not None
    assert result.num_files == 1
    blob.write_bytes(b"Weights")
    with pytest.raises(ModelLoadError, match="damaged"):
        verify_manifest(snapshot)


def test_a_model_that_is_too_large_for_digests_is_said_once(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_manifest(model)
    # As at start: an earlier test may have set up the log, and pytest listens to such a logger by itself.
    monkeypatch.setattr(logging.getLogger("corebound"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("corebound"), "handlers", [])
    with caplog.at_level(logging.INFO, logger="corebound"):
        assert verify_manifest(model) is not None
        assert caplog.records == []
        assert verify_manifest(model, max_bytes=1 << 10) is None
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "sizes compared, digests not" in record.getMessage() and str(model) in record.getMessage()
