"""Builds the container images with podman or docker: `make images`.

Everything that the build needs of this machine comes as an argument, a build secret or a build context: the base image,
Debian's package sources, and a folder of wheels that pip of this checkout downloads. Nothing of it stays in a layer.
Standard output is one line for each image: its name, its digest and its size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine import Engine, fail, find_engine, run, run_quietly, say
from wheels import FLAVOURS, ROOT, project, wheelhouse

from lab.image import own_sources

VERSIONS = ROOT / "images/versions.env"
CACHE = ROOT / "build/images"
# The time of every file and layer. Were it that of the commit, a commit would build every layer anew.
SOURCE_DATE_EPOCH = "1577836800"
# What the Containerfiles copy; the build sees nothing else.
CONTEXT = ("runtime", "images")
# What debian:bookworm-slim leaves out too. Licences stay.
SLIM = (
    *("exclude=/usr/share/doc/*", "include=/usr/share/doc/*/copyright", "exclude=/usr/share/man/*"),
    *("exclude=/usr/share/locale/*", "exclude=/usr/share/info/*", "exclude=/usr/share/lintian/*"),
)


def read_versions(path: Path) -> dict[str, str]:
    """Return the assignments of versions.env, each of which the environment may replace."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: os.environ.get(name) or value for name, value in pairs}


def version() -> str:
    """Return the version of the Python package."""
    with (ROOT / "runtime/pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def git(*words: str) -> str:
    """Return what git says of this checkout."""
    return run(["git", "-C", ROOT, *words], capture_output=True).stdout.strip()


@contextmanager
def context(flavour: str) -> Iterator[Path]:
    """Yield a folder with the tracked files that the Containerfiles copy, all with one owner, mode and time."""
    names = git("ls-files", "--", *CONTEXT).splitlines()
    with tempfile.TemporaryDirectory(prefix="corebound-images-") as text:
        folder = Path(text)
        for name in names:
            source, target = ROOT / name, folder / name
            if not source.is_file():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)
        if flavour == "ipex":
            ask_for_ipex(folder / "runtime/pyproject.toml")
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir():
                path.chmod(0o755)
            os.utime(path, (0, 0))
        yield folder


def ask_for_ipex(path: Path) -> None:
    """Rewrite the metadata of the package to the version and the requirements of the IPEX flavour."""
    sys.path.append(str(ROOT / "runtime/packaging"))
    from build_ipex_wheel import flavour_project

    pins = project()
    torch, packages = pins["tool"]["corebound-ipex"]["torch"], pins["dependency-groups"]["ipex"]
    path.write_text(flavour_project(path.read_text(encoding="utf-8"), torch, packages), encoding="utf-8")


def find_base(engine: Engine, asked: str, sources: Path | None) -> tuple[str, Path | None]:
    """Return the base image and the package sources to build with.

    Where no registry serves the image, it is made of Debian's packages from this machine's own sources.
    """
    if engine.has(asked):
        return asked, sources
    say(f"pulling {asked}")
    if run_quietly([*engine.words, "pull", "--quiet", asked]):
        return asked, sources
    say(f"no registry serves {asked}: making it from this machine's own package sources")
    own = own_sources(Path("/etc/apt"), platform.freedesktop_os_release().get("VERSION_CODENAME", ""))
    if not own or not shutil.which("mmdebstrap"):
        fail(f"{asked} cannot be pulled", "name an image that can: make images BASE_IMAGE=...; or install mmdebstrap")
    CACHE.mkdir(parents=True, exist_ok=True)
    listed = CACHE / "sources.list"
    listed.write_text("".join(f"{line}\n" for line in own), encoding="utf-8")
    words = bootstrap_command(own[0].split()[2])
    recipe = json.dumps([own, words])
    name = f"localhost/corebound/debian:{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if not engine.has(name):
        tar = CACHE / "debian.tar"
        run([*words, tar, *own], capture_output=True, env={**os.environ, "SOURCE_DATE_EPOCH": "0"})
        run([*engine.words, "import", tar, name], capture_output=True)
        tar.unlink()
    return name, sources or listed


def bootstrap_command(release: str) -> list[str]:
    """Return how the smallest Debian that can install packages is made; archive and sources are to follow."""
    # The addresses of the sources must not stay in the image.
    forget = 'rm -rf "$1/etc/apt/sources.list" "$1"/etc/apt/sources.list.d/* "$1"/var/log/* "$1"/var/cache/*/*'
    words = ["mmdebstrap", "--quiet", "--variant=minbase", f"--customize-hook={forget}"]
    # Else the package usrmerge does at its installation what the hook does before it, and brings all of Perl along.
    words += ["--include=usr-is-merged", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
    return [*words, *(f"--dpkgopt=path-{rule}" for rule in SLIM), release]


def build_all(engine: Engine, options: argparse.Namespace) -> list[str]:
    """Build base and runtime and return the tag of each."""
    versions, flavour = read_versions(VERSIONS), FLAVOURS[options.flavour]
    base_image, sources = find_base(engine, versions["BASE_IMAGE"], options.apt_sources)
    base_digest = engine.digest(base_image)
    wheels = wheelhouse(CACHE, options.flavour, allow_cuda=options.allow_cuda)
    tags = [f"{versions['IMAGE_PREFIX']}/{name}:{version()}" for name in ("base", flavour.image)]
    created = int(git("log", "-1", "--format=%ct"))
    dirty = "-dirty" if git("status", "--porcelain", "--", *CONTEXT) else ""
    secrets = [f"id=apt_sources,src={sources}"] if sources else []
    common = {"SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH}
    base = {"BASE_IMAGE": base_image, "BASE_DIGEST": base_digest, "JOB_UID": versions["JOB_UID"]}
    runtime = {
        "BASE": tags[0],
        "FLAVOUR": options.flavour,
        "TORCH_ABI": flavour.torch_abi,
        "WHEELHOUSE": wheels.name,
        "VERSION": version(),
        "REVISION": git("rev-parse", "HEAD") + dirty,
        "CREATED": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created)),
        "SSH_PORT": versions["SSH_PORT"],
    }
    with context(options.flavour) as folder:
        say(f"{tags[0]} from {base_image}, {base_digest}")
        engine.build(folder, "images/base/Containerfile", tags[0], common | base, secret=secrets)
        say(f"{tags[1]}: compiling and installing")
        contexts = [f"wheelhouse={wheels}"]
        file = "images/runtime/Containerfile"
        engine.build(folder, file, tags[1], common | runtime, secret=secrets, build_context=contexts)
    return tags


def main() -> None:
    """Build, and save or push when asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", default="", help="podman or docker, with options of its own if need be")
    parser.add_argument("--flavour", choices=FLAVOURS, default="native", help="what the runtime image holds")
    parser.add_argument("--allow-cuda", action="store_true", help="accept a CUDA build of torch")
    parser.add_argument(
        "--apt-sources", type=Path, help="a sources.list to build with, in place of the base image's own"
    )
    parser.add_argument("--save", type=Path, help="also write the runtime image into this archive")
    parser.add_argument("--push", default="", help="also push the runtime image to this registry")
    parser.add_argument("--no-cache", action="store_true", help="build every layer anew")
    options = parser.parse_args()
    started = time.monotonic()
    engine = find_engine(options.engine, cache=not options.no_cache)
    tags = build_all(engine, options)
    for tag in tags:
        print(f"{tag} {engine.digest(tag)} {engine.num_bytes(tag) / 1e6:.0f} MB")
    if options.save:
        engine.save(tags[-1], options.save)
    if options.push:
        print(engine.push(tags[-1], options.push))
    say(f"done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
