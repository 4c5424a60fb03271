"""Writes one archive from which `make deploy BUNDLE=file` installs where there is no package index and no compiler.

Started by `make bundle` with the environment of this checkout after `make wheel`; needs nothing but Python and pip. The
bundle holds the wheels of the nodes and of the machine that runs Ansible, the model, and MANIFEST.json with the SHA-256
of every file. It is a plain tar: wheels and weights are compressed already, and a damaged byte then belongs to one file
that can be named. Equal contents give equal bytes. Standard output is the path of the bundle.
"""

from __future__ import annotations

import argparse
import email.parser
import hashlib
import io
import json
import platform
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"
INSTALL_TORCH = ROOT / "playbooks/roles/runtime/files/install_torch.py"
DEMO = ROOT / "runtime/corebound/demo"
FORMAT = 1
# What each optional part brings: groups of packages for nodes. oneccl also brings our library, which is built here.
OPTIONAL_PARTS = {"intel_mpi": ["intel_mpi"], "oneccl": ["intel_mpi"]}
BUILD_CCL = ROOT / "runtime/packaging/build_ccl_for_nodes.sh"
CCL_LIBRARY = "libcorebound_ccl.so"
# The packages of the machine that runs Ansible; every other set goes to nodes.
CONTROL = "control"
# Anything fixed will do: equal contents are to give equal bytes.
MODIFIED_S = 1577836800
OLD_TAGS = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
Version = tuple[int, int]


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"bundle: {text}", file=sys.stderr, flush=True)


def chosen_parts(text: str) -> list[str]:
    """Return the optional parts named in `text`, without doubles.

    Raises: SystemExit when one is not known.
    """
    names = list(dict.fromkeys(text.replace(",", " ").split()))
    for name in names:
        if name not in OPTIONAL_PARTS:
            print(f"error: BUNDLE_WITH: found `{name}`, expected any of: {', '.join(OPTIONAL_PARTS)}", file=sys.stderr)
            sys.exit(2)
    return names


def groups_of(parts: Sequence[str]) -> list[str]:
    """Return the groups of packages that the optional parts bring, without doubles."""
    return list(dict.fromkeys(group for part in parts for group in OPTIONAL_PARTS[part]))


def cpu_torch(version: str) -> str:
    """Return the exact version of torch's CPU build that pip finds; ends with the refusal where it finds another."""
    command = [sys.executable, str(INSTALL_TORCH), "--resolve-only", version]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return str(json.loads(done.stdout)["version"])


def download(folder: Path, name: str, requirements: Sequence[str]) -> None:
    """Download the wheels that the requirements come to into `folder`/`name`, and never a source distribution."""
    say(f"packages: {name}")
    target = folder / name
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    words = [*command, "--only-binary=:all:", "--dest", str(target), *requirements]
    code = subprocess.run(words, stdout=sys.stderr, cwd=ROOT, check=False).returncode
    if code != 0:
        sys.exit(f"error: pip did not get the packages of {name}; its own words are above")
    wheels = list(target.glob("*.whl"))
    say(f"packages: {name}: {len(wheels)} wheels, {sum(path.stat().st_size for path in wheels) / 1e6:.0f} MB")


def model_files(source: Path) -> Iterator[Path]:
    """Yield the files of a model that are delivered: no hidden ones and no Python sources, as model_delivery does."""
    for path in sorted(source.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
        if path.is_file() and path.suffix not in {".py", ".pyc"} and not hidden:
            yield path


def build_ccl() -> None:
    """Build our binding to oneCCL, which is in no wheel, unless it is up to date."""
    say("the binding to oneCCL")
    if subprocess.run([str(BUILD_CCL), str(Path(sys.executable).parent)], stdout=sys.stderr, check=False).returncode:
        sys.exit("error: the binding to oneCCL was not built; the reason is above")


def contents(folder: Path, parts: Sequence[str], models: Sequence[Path]) -> dict[str, Path]:
    """Return name in the bundle -> file, for what was downloaded, what `make wheel` made, and the models."""
    record = json.loads((DIST / "wheel.json").read_text(encoding="utf-8"))
    found = {name: DIST / name for name in (record["wheel"], "wheel.json")}
    for group in ("runtime", *groups_of(parts)):
        found[f"requirements-{group}.txt"] = DIST / f"requirements-{group}.txt"
    if "oneccl" in parts:
        found[CCL_LIBRARY] = DIST / CCL_LIBRARY
    for path in sorted(folder.rglob("*.whl")):
        found[f"wheels/{path.relative_to(folder)}"] = path
    for model in models:
        name = "demo" if model == DEMO else model.name
        found |= {f"models/{name}/{path.relative_to(model)}": path for path in model_files(model)}
    return dict(sorted(found.items()))


def licence(metadata: Any) -> str:
    """Return what a wheel's metadata say of its licence; empty when they say nothing."""
    stated = metadata["License-Expression"] or (metadata["License"] or "").partition("\n")[0].strip()
    classified = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier", []) if "License ::" in line]
    return str(stated or ", ".join(classified))


def wheel_facts(path: Path) -> dict[str, str]:
    """Return package, version and licence from a wheel's own metadata."""
    with zipfile.ZipFile(path) as wheel:
        name = next(name for name in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        metadata = email.parser.BytesHeaderParser().parsebytes(wheel.read(name))
    return {"package": str(metadata["Name"]), "version": str(metadata["Version"]), "licence": licence(metadata)}


def required_glibc(path: Path) -> Version:
    """Return the oldest glibc for a wheel, from its tags or else its libraries, or for a library alone."""
    tags = path.stem.rpartition("-")[2].split(".")
    stated = [OLD_TAGS[tag.partition("_")[0]] for tag in tags if tag.partition("_")[0] in OLD_TAGS]
    stated += [(int(tag.split("_")[1]), int(tag.split("_")[2])) for tag in tags if tag.startswith("manylinux_")]
    if stated or tags == ["any"]:
        return min(stated, default=(0, 0))
    if path.suffix == ".so":
        libraries = [path.read_bytes()]
    else:
        with zipfile.ZipFile(path) as wheel:
            libraries = [wheel.read(name) for name in wheel.namelist() if name.endswith(".so")]
    symbols = {found for data in libraries for found in re.findall(rb"GLIBC_(\d+)\.(\d+)", data)}
    return max(((int(major), int(minor)) for major, minor in symbols), default=(0, 0))


def node_platform(files: Mapping[str, Path]) -> dict[str, str]:
    """Return what a node must be to run what is in the bundle."""
    binaries = [path for name, path in files.items() if name.endswith((".whl", ".so")) and f"/{CONTROL}/" not in name]
    glibc = max(required_glibc(path) for path in binaries)
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "python": sysconfig.get_python_version(),
        "min_glibc": f"{glibc[0]}.{glibc[1]}",
    }


def commit() -> dict[str, Any]:
    """Return the commit of this checkout and whether it has changes; empty outside a Git checkout."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        return {"commit": "", "modified": False}
    status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    return {"commit": found.stdout.strip(), "modified": bool(status.stdout.strip())}


def manifest(files: Mapping[str, Path], parts: Iterable[str]) -> bytes:
    """Return the text of MANIFEST.json; it holds no time, so equal contents give equal bytes."""
    entries: dict[str, dict[str, Any]] = {}
    for name, path in files.items():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        entries[name] = {"sha256": digest, "bytes": path.stat().st_size}
        if name.endswith(".whl"):
            entries[name] |= wheel_facts(path)
    with (ROOT / "runtime/pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    found = {
        "format": FORMAT,
        "version": project["version"],
        "source": commit(),
        "platform": node_platform(files),
        "with": sorted(parts),
        "files": entries,
    }
    return (json.dumps(found, indent=1) + "\n").encode()


def add(archive: tarfile.TarFile, name: str, num_bytes: int, file: io.BufferedIOBase) -> None:
    """Append a file without what is of this machine: owner, mode and time."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = num_bytes, MODIFIED_S, 0o644
    archive.addfile(entry, file)


def write(target: Path, files: Mapping[str, Path], text: bytes) -> None:
    """Write the archive, the manifest first; it has its name only when it is whole."""
    part = target.with_name(f".{target.name}.part")
    checksum = f"{hashlib.sha256(text).hexdigest()}  MANIFEST.json\n".encode()
    with tarfile.open(part, "w:", format=tarfile.GNU_FORMAT) as archive:
        add(archive, "MANIFEST.json", len(text), io.BytesIO(text))
        add(archive, "MANIFEST.json.sha256", len(checksum), io.BytesIO(checksum))
        for name, path in files.items():
            with path.open("rb") as file:
                add(archive, name, path.stat().st_size, file)
    part.replace(target)


def main() -> None:
    """Download, describe and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--with", dest="parts", default="", help=f"optional parts: {', '.join(OPTIONAL_PARTS)}")
    parser.add_argument("--model", type=Path, help="a Hugging Face model folder to put in beside the demo model")
    options = parser.parse_args()
    parts = chosen_parts(options.parts)
    models = [DEMO, *([options.model.resolve()] if options.model else [])]
    for model in models:
        if not (model / "config.json").is_file() or (model != DEMO and model.name == "demo"):
            expected = "a folder with a config.json and another name than demo"
            print(f"error: BUNDLE_MODEL: expected {expected}, found {model}", file=sys.stderr)
            sys.exit(2)
    with (ROOT / "pyproject.toml").open("rb") as pyproject:
        pins = tomllib.load(pyproject)["tool"]["corebound"]
    pip = f"pip=={pins['pip']}"
    with tempfile.TemporaryDirectory(dir=DIST, prefix=".bundle-") as folder:
        torch = f"torch=={cpu_torch(pins['torch'])}"
        download(Path(folder), "runtime", [pip, torch, "--requirement", str(DIST / "requirements-runtime.txt")])
        download(Path(folder), CONTROL, [pip, "--group", "pyproject.toml:deploy"])
        for group in groups_of(parts):
            download(Path(folder), group, ["--requirement", str(DIST / f"requirements-{group}.txt")])
        if "oneccl" in parts:
            build_ccl()
        files = contents(Path(folder), parts, models)
        text = manifest(files, parts)
        found = json.loads(text)
        tag = f"cp{found['platform']['python'].replace('.', '')}-linux_{found['platform']['machine']}"
        target = DIST / f"corebound-bundle-{found['version']}-{tag}.tar"
        say(f"writing {len(files)} files")
        write(target, files, text)
    extras = f", with {', '.join(parts)}" if parts else ""
    say(f"{target.stat().st_size / 1e6:.0f} MB for Python {found['platform']['python']}{extras}")
    print(target)


if __name__ == "__main__":
    main()
