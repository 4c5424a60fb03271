"""make_bundle.py and unpack_bundle.py: equal contents give equal bytes, and what is wrong is named beforehand."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from unit.tools.loading import load_script

maker = load_script("runtime/packaging/make_bundle.py")
unpacker = load_script("runtime/packaging/unpack_bundle.py")

TEXTS = {"requirements-runtime.txt": b"rich==15\n", "wheels/runtime/a-1-py3-none-any.whl": b"wheel" * 100}


def manifest(texts: dict[str, bytes], **changes: Any) -> bytes:
    """Returns a manifest of these files."""
    files = {name: {"sha256": hashlib.sha256(text).hexdigest(), "bytes": len(text)} for name, text in texts.items()}
    found = {"format": 1, "version": "1", "source": {"commit": ""}, "files": files, **changes}
    return json.dumps(found).encode()


def write(folder: Path, texts: dict[str, bytes], text: bytes) -> Path:
    """Returns a bundle of these files under a manifest of this text."""
    files = {}
    for number, (name, content) in enumerate(texts.items()):
        files[name] = folder / f"source-{number}"
        files[name].write_bytes(content)
    target = folder / "bundle.tar"
    maker.write(target, files, text)
    return target


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Returns a good bundle."""
    return write(tmp_path, TEXTS, manifest(TEXTS))


def unpacked(folder: Path) -> dict[str, bytes]:
    """Returns what is below a folder, without manifest and checksum."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: text for name, text in found.items() if not name.startswith("MANIFEST")}


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    first = write(tmp_path, TEXTS, manifest(TEXTS)).read_bytes()
    (tmp_path / "later").mkdir()
    assert write(tmp_path / "later", TEXTS, manifest(TEXTS)).read_bytes() == first


def test_a_bundle_is_unpacked_once_and_repaired_where_it_differs(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    unpacker.install(bundle, target)
    assert unpacked(target) == TEXTS
    kept = (target / "requirements-runtime.txt").stat().st_mtime_ns
    (target / "wheels/runtime/a-1-py3-none-any.whl").write_bytes(b"half")
    (target / "wheels/runtime/old-1-py3-none-any.whl").write_bytes(b"of an earlier bundle")
    unpacker.install(bundle, target)
    assert unpacked(target) == TEXTS
    assert (target / "requirements-runtime.txt").stat().st_mtime_ns == kept


def test_every_byte_that_differs_is_told_by_its_file_and_nothing_is_written(bundle: Path, tmp_path: Path) -> None:
    data = bytearray(bundle.read_bytes())
    for text in TEXTS.values():
        data[data.index(text)] ^= 1
    bundle.write_bytes(data)
    with pytest.raises(unpacker.BundleError) as caught:
        unpacker.install(bundle, tmp_path / "target")
    for line, (name, text) in zip(str(caught.value).splitlines(), TEXTS.items(), strict=True):
        found = hashlib.sha256(bytes([text[0] ^ 1]) + text[1:]).hexdigest()
        assert line == f"{name}: expected SHA-256 {hashlib.sha256(text).hexdigest()}, found {found}"
    assert not (tmp_path / "target").exists()


def test_a_changed_manifest_is_told_by_its_checksum(bundle: Path, tmp_path: Path) -> None:
    data = bundle.read_bytes()
    bundle.write_bytes(data.replace(b'"version": "1"', b'"version": "2"'))
    with pytest.raises(unpacker.BundleError, match=r"MANIFEST\.json: expected SHA-256 \w{64}, found \w{64}"):
        unpacker.install(bundle, tmp_path / "target")


def test_a_bundle_that_ends_too_early_is_refused(bundle: Path, tmp_path: Path) -> None:
    data = bundle.read_bytes()
    bundle.write_bytes(data[: data.index(b"wheelwheel") + 100])
    with pytest.raises((unpacker.BundleError, tarfile.TarError)):
        unpacker.install(bundle, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_missing_and_additional_files_are_named(tmp_path: Path) -> None:
    bundle = write(tmp_path, {"one": b"1", "stray": b"2"}, manifest({"one": b"1", "absent": b"3"}))
    with pytest.raises(unpacker.BundleError) as caught:
        unpacker.install(bundle, tmp_path / "target")
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["stray", "absent"]


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "MANIFEST.json", "a//b"])
def test_a_name_that_leads_out_of_the_bundle_is_refused(tmp_path: Path, name: str) -> None:
    bundle = write(tmp_path, {name: b"1"}, manifest({name: b"1"}))
    with pytest.raises(unpacker.BundleError, match="expected the path of a file below the bundle"):
        unpacker.install(bundle, tmp_path / "target")


def test_a_link_in_the_archive_is_refused(bundle: Path, tmp_path: Path) -> None:
    with tarfile.open(bundle, "a:") as archive:
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(entry)
    with pytest.raises(unpacker.BundleError, match="link: expected a plain file"):
        unpacker.install(bundle, tmp_path / "target")


@pytest.mark.parametrize("data", [b"", b"not a bundle" * 100])
def test_another_kind_of_file_is_no_bundle(tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(data)
    words = ["unpack_bundle.py", str(tmp_path / "file"), "--target", str(tmp_path / "target")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as caught:
        unpacker.main()
    assert caught.value.code == 2


def test_another_format_is_refused(tmp_path: Path) -> None:
    bundle = write(tmp_path, {}, manifest({}, format=2))
    with pytest.raises(unpacker.BundleError, match="format: expected 1, found 2"):
        unpacker.install(bundle, tmp_path / "target")


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """Returns a wheel with these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, data in files.items():
            archive.writestr(member, data)
    (folder / name).write_bytes(buffer.getvalue())
    return folder / name


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("a-1-py3-none-any.whl", {}, (0, 0)),
        ("a-1-cp311-cp311-manylinux_2_28_x86_64.whl", {}, (2, 28)),
        ("a-1-cp311-cp311-manylinux2014_x86_64.manylinux_2_28_x86_64.whl", {}, (2, 17)),
        ("a-1-py3-none-linux_x86_64.whl", {"a/x.so": b"\0GLIBC_2.4\0GLIBC_2.34\0GLIBC_2.2.5\0"}, (2, 34)),
    ],
)
def test_the_oldest_glibc_comes_from_tags_or_libraries(
    tmp_path: Path, name: str, files: dict[str, bytes], expected: tuple[int, int]
) -> None:
    assert maker.required_glibc(wheel(tmp_path, name, files)) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("License-Expression: MIT\n", "MIT"),
        ("License: BSD\n        and its whole text\n", "BSD"),
        ("Classifier: License :: OSI Approved :: ISC License\n", "ISC License"),
        ("", ""),
    ],
)
def test_the_licence_is_what_the_wheel_says(tmp_path: Path, lines: str, expected: str) -> None:
    text = f"Metadata-Version: 2.1\nName: a\nVersion: 1\n{lines}".encode()
    path = wheel(tmp_path, "a-1-py3-none-any.whl", {"a-1.dist-info/METADATA": text})
    assert maker.wheel_facts(path) == {"package": "a", "version": "1", "licence": expected}


def test_an_unknown_extra_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert maker.chosen_parts("intel_mpi, intel_mpi") == ["intel_mpi"]
    with pytest.raises(SystemExit):
        maker.chosen_parts("intel-mpi")
    assert "BUNDLE_WITH: found `intel-mpi`, expected any of: intel_mpi, oneccl" in capsys.readouterr().err
