from __future__ import annotations

import hashlib
import io
import tarfile

import pytest

from corebound.errors import ConfigError, HostError, ModelLoadError
from corebound.k8s.fetch import fetch_archive


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "model.tar"
    with tarfile.open(path, "w") as tar:
        entry = tarfile.TarInfo("bloom/config.json")
        entry.size = 2
        tar.addfile(entry, io.BytesIO(b"{}"))
    return path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_archive_with_the_right_digest_is_unpacked(archive, tmp_path):
    size = fetch_archive(archive.as_uri(), digest(archive), tmp_path / "models", 5)
    assert size == archive.stat().st_size
    assert (tmp_path / "models/bloom/config.json").read_text() == "{}"
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["bloom"]


def test_of_an_archive_with_another_digest_nothing_is_unpacked(archive, tmp_path):
    with pytest.raises(ModelLoadError, match=f"expected SHA-256 {'0' * 64}, found {digest(archive)}"):
        fetch_archive(archive.as_uri(), "0" * 64, tmp_path / "models", 5)
    assert list((tmp_path / "models").iterdir()) == []


def test_an_archive_cannot_write_outside_its_folder(tmp_path):
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("../escaped"), io.BytesIO())
    with pytest.raises(ModelLoadError, match="outside"):
        fetch_archive(path.as_uri(), digest(path), tmp_path / "models", 5)
    assert not (tmp_path / "escaped").exists()


def test_an_archive_that_is_not_there_and_a_scheme_that_is_not_known_are_errors(tmp_path):
    with pytest.raises(HostError, match="could not be fetched"):
        fetch_archive((tmp_path / "none.tar").as_uri(), "0" * 64, tmp_path, 5)
    with pytest.raises(ConfigError, match="unknown scheme"):
        fetch_archive("ftp://host/a.tar", "0" * 64, tmp_path, 5)
