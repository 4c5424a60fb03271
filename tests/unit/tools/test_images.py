"""images/: what a build wants, the command lines that it composes for podman and docker, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from unit.tools.loading import ROOT, load_script

ARGUMENTS = {"SOURCE_DATE_EPOCH": "1700000000", "BASE": "localhost/corebound/base:1"}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    # A script finds those beside it because it is started from there.
    monkeypatch.syspath_prepend(ROOT / "images")
    for name in ("engine", "wheels", "build_ipex_wheel", "build_wheel"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def build(scripts: None) -> ModuleType:
    return load_script("images/build.py")


@pytest.fixture
def wheels(scripts: None) -> ModuleType:
    return load_script("images/wheels.py")


@pytest.fixture
def engine(scripts: None) -> ModuleType:
    return load_script("images/engine.py")


def test_versions_are_read_line_by_line_and_the_environment_replaces_them(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "versions.env"
    path.write_text("# a remark\n\nBASE_IMAGE=example/debian:12@sha256:ab=\nSSH_PORT=2222\n", encoding="utf-8")
    monkeypatch.setenv("SSH_PORT", "")
    monkeypatch.delenv("BASE_IMAGE", raising=False)
    assert build.read_versions(path) == {"BASE_IMAGE": "example/debian:12@sha256:ab=", "SSH_PORT": "2222"}
    monkeypatch.setenv("SSH_PORT", "2022")
    assert build.read_versions(path)["SSH_PORT"] == "2022"


def test_versions_env_has_what_the_build_asks_of_it(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BASE_IMAGE", "IMAGE_PREFIX", "JOB_UID", "SSH_PORT"):
        monkeypatch.delenv(name, raising=False)
    found = build.read_versions(build.VERSIONS)
    assert {"BASE_IMAGE", "IMAGE_PREFIX", "JOB_UID", "SSH_PORT"} <= set(found)
    assert ":" in found["BASE_IMAGE"].rpartition("/")[2]


@pytest.mark.parametrize(
    ("name", "torch_of", "own"), [("native", "corebound", "runtime"), ("ipex", "corebound-ipex", "ipex")]
)
def test_a_flavour_wants_its_own_torch_and_packages_and_one_intel_mpi(
    wheels: ModuleType, name: str, torch_of: str, own: str
) -> None:
    pins = wheels.project()
    found = wheels.lists(pins, wheels.FLAVOURS[name])
    assert found["runtime.txt"][0] == f"torch=={pins['tool'][torch_of]['torch']}"
    assert set(found["runtime.txt"][1:]) == {*pins["dependency-groups"][own], *pins["dependency-groups"]["intel_mpi"]}
    assert found["build.txt"][0] == f"pip=={pins['tool']['corebound']['pip']}"
    assert [line.partition("==")[0] for line in found["oneccl.txt"]] == ["oneccl-devel"]


def test_other_pins_another_python_or_a_cuda_torch_are_another_wheelhouse(wheels: ModuleType) -> None:
    wanted = {"runtime.txt": ["torch==2.13.0", "numpy==2.4.6"]}
    same = wheels.digest(wanted, "3.11", allow_cuda=False)
    assert same == wheels.digest(dict(wanted), "3.11", allow_cuda=False)
    others = [
        wheels.digest({"runtime.txt": ["torch==2.13.0", "numpy==2.4.7"]}, "3.11", allow_cuda=False),
        wheels.digest(wanted, "3.12", allow_cuda=False),
        wheels.digest(wanted, "3.11", allow_cuda=True),
    ]
    assert len({same, *others}) == 4


def test_a_wheelhouse_that_is_there_is_taken_without_asking_pip(
    wheels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process(*words: object, **options: object) -> None:
        raise AssertionError(words)

    wanted = wheels.lists(wheels.project(), wheels.FLAVOURS["native"])
    folder = tmp_path / f"wheelhouse-native-{wheels.digest(wanted, sys.version, allow_cuda=False)}"
    folder.mkdir()
    monkeypatch.setattr(subprocess, "run", no_process)
    assert wheels.wheelhouse(tmp_path, "native", allow_cuda=False) == folder
    with pytest.raises(AssertionError):
        wheels.wheelhouse(tmp_path, "native", allow_cuda=True)


def test_a_cuda_build_of_torch_is_refused_before_anything_is_downloaded(
    wheels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script that asks pip is replaced by one that answers as it does where pip finds only a CUDA build."""
    asked = tmp_path / "asked"
    script = tmp_path / "install_torch.py"
    script.write_text(f"import sys; open({str(asked)!r}, 'w').write(' '.join(sys.argv[1:])); sys.exit(2)\n", "utf-8")
    monkeypatch.setattr(wheels, "INSTALL_TORCH", script)
    with pytest.raises(SystemExit) as ended:
        wheels.wheelhouse(tmp_path / "cache", "ipex", allow_cuda=False)
    assert ended.value.code == 2
    words = asked.read_text(encoding="utf-8")
    assert "--resolve-only" in words and "ALLOW_CUDA_TORCH=1 make images" in words
    assert "--allow-cuda" not in words
    assert not (tmp_path / "cache").exists()


def test_podman_builds_in_dockers_format_with_one_time_for_all_files(engine: ModuleType) -> None:
    podman = engine.find_engine("podman --root /srv/images")
    command = podman.build_command(
        Path("/context"), "images/base/Containerfile", "x:1", ARGUMENTS, secret=["id=a,src=/b"], build_context=["w=/w"]
    )
    assert command[:4] == ["podman", "--root", "/srv/images", "build"]
    assert command[-1] == "/context"
    assert {
        "--build-arg=BASE=localhost/corebound/base:1",
        "--secret=id=a,src=/b",
        "--build-context=w=/w",
        "--format=docker",
        "--timestamp=1700000000",
        "--layers",
    } <= set(command)
    assert command[command.index("--file") + 1] == "/context/images/base/Containerfile"


def test_docker_gets_no_option_that_only_podman_has(engine: ModuleType) -> None:
    """docker was never run by this project: these are the words that it would be given."""
    docker = engine.find_engine("/usr/bin/docker --context build")
    command = docker.build_command(Path("/context"), "images/runtime/Containerfile", "x:1", ARGUMENTS, secret=[])
    assert command == [
        *("/usr/bin/docker", "--context", "build", "build"),
        *("--file", "/context/images/runtime/Containerfile", "--tag", "x:1"),
        *("--build-arg=SOURCE_DATE_EPOCH=1700000000", "--build-arg=BASE=localhost/corebound/base:1", "/context"),
    ]


@pytest.mark.parametrize("name", ["podman", "docker"])
def test_without_the_cache_every_layer_is_built_anew(engine: ModuleType, name: str) -> None:
    command = engine.find_engine(name, cache=False).build_command(Path("/c"), "f", "x:1", ARGUMENTS)
    assert "--no-cache" in command
    assert "--layers" not in command


def test_another_engine_is_refused_and_a_machine_without_one_is_told_what_to_do(
    engine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="expected podman or docker"):
        engine.find_engine("kaniko --force")
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(SystemExit, match="hint: install one of them"):
        engine.find_engine("")


def test_equal_files_of_a_folder_become_links_to_the_longest_name(tmp_path: Path) -> None:
    script = load_script("images/runtime/files/link_equal_files.py")
    for name, content in {"a.so": "1", "a.so.1": "1", "a.so.1.2": "1", "b.so": "2"}.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    script.link_equal_files(tmp_path)
    assert (tmp_path / "a.so").readlink() == (tmp_path / "a.so.1").readlink() == Path("a.so.1.2")
    assert not (tmp_path / "a.so.1.2").is_symlink() and not (tmp_path / "b.so").is_symlink()
    assert (tmp_path / "a.so").read_text(encoding="utf-8") == "1"


def test_the_flavours_wheel_asks_for_its_own_torch_and_the_extension(build: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_bytes((ROOT / "runtime/pyproject.toml").read_bytes())
    build.ask_for_ipex(path)
    found = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    assert found["version"] == f"{build.version()}+ipex"
    assert {"torch==2.8.*", "intel-extension-for-pytorch==2.8.0"} <= set(found["dependencies"])
