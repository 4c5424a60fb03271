"""Builds the container images with podman or docker: `make images`.

Everything that the build needs of this machine comes as an argument, a build secret or a build context: the base image,
Debian's package sources, and a folder of wheels that pip of this checkout downloads. Nothing of it stays in a layer.
Standard output is one line for each image: its name and its digest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.image import own_sources

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ROOT / "images/versions.env"
CACHE = ROOT / "build/images"
# What the Containerfiles copy; the build sees nothing else.
CONTEXT = ("pyproject.toml", "runtime", "images")
WHEEL_GROUPS = ("build", "runtime", "intel_mpi")


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"images: {text}", file=sys.stderr, flush=True)


def fail(text: str, hint: str = "") -> None:
    """End with an error of the user's or the machine's."""
    sys.exit(f"error: {text}" + (f"\n\nhint: {hint}" if hint else ""))


def run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Return what a command came to; end with its own words when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, text=True, check=False, **options)
    if done.returncode != 0:
        sys.stderr.write((done.stdout or "") + (done.stderr or ""))
        fail(f"{shlex.join(words[:4])} ...: exit code {done.returncode}")
    return done


def read_versions(path: Path) -> dict[str, str]:
    """Return the assignments of versions.env, each of which the environment may replace."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: os.environ.get(name) or value for name, value in pairs}


def project() -> dict[str, Any]:
    """Return pyproject.toml of the repository."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def version() -> str:
    """Return the version of the Python package."""
    with (ROOT / "runtime/pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def git(*words: str) -> str:
    """Return what git says of this checkout."""
    return run(["git", "-C", ROOT, *words], capture_output=True).stdout.strip()


def wheelhouse() -> Path:
    """Return the folder with every wheel of the images, downloaded when the pins are others than last time."""
    pins = project()
    groups = {name: pins["dependency-groups"][name] for name in WHEEL_GROUPS}
    torch = f"torch=={pins['tool']['corebound']['torch']}"
    wanted = [f"pip=={pins['tool']['corebound']['pip']}", torch, *(line for lines in groups.values() for line in lines)]
    digest = hashlib.sha256(json.dumps([sys.version, wanted]).encode()).hexdigest()[:12]
    folder = CACHE / f"wheelhouse-{digest}"
    if (folder / "torch.txt").is_file():
        return folder
    say("downloading the wheels (about 600 MB)")
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--only-binary=:all:"]
    run([*pip, "--dest", folder, *wanted], capture_output=True)
    cuda = sorted(path.name for path in folder.glob("*.whl") if path.name.startswith(("nvidia", "cuda", "triton")))
    if cuda:
        shutil.rmtree(folder)
        hint = "point pip at torch's CPU wheels, as `make setup` explains"
        fail(f"pip chose a CUDA build of {torch}: it came with {', '.join(cuda[:3])}", hint)
    (folder / "torch.txt").write_text(f"{torch}\n", encoding="utf-8")
    return folder


@contextmanager
def context() -> Iterator[Path]:
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
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir():
                path.chmod(0o755)
            os.utime(path, (0, 0))
        yield folder


class Engine:
    """podman or docker, with what a build of ours needs."""

    def __init__(self, words: Sequence[str], cache: bool) -> None:
        self.words = list(words)
        self.name = Path(self.words[0]).name
        self._cache = cache

    def build(self, folder: Path, file: str, tag: str, arguments: dict[str, str], **more: Sequence[str]) -> None:
        """Build one Containerfile, whose output passes through on standard error."""
        command = [*self.words, "build", "--file", str(folder / file), "--tag", tag]
        command += [f"--build-arg={name}={value}" for name, value in arguments.items()]
        for option, values in more.items():
            command += [f"--{option.replace('_', '-')}={value}" for value in values]
        if self.name == "podman":
            # Docker's format holds the health check, and one time for all files makes equal contents equal bytes.
            command += ["--format=docker", f"--timestamp={arguments['SOURCE_DATE_EPOCH']}"]
            command += ["--layers" if self._cache else "--no-cache"]
            # The build needs Debian's package sources only; this needs neither a bridge nor cgroups.
            command += ["--isolation=chroot"]
        elif not self._cache:
            command += ["--no-cache"]
        code = subprocess.run(
            [*command, str(folder)], stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False
        ).returncode
        if code != 0:
            fail(f"{self.name} could not build {file}; its own words are above")

    def digest(self, tag: str) -> str:
        """Return the digest by which the image can be named."""
        form = "{{.Digest}}" if self.name == "podman" else "{{.Id}}"
        return run([*self.words, "image", "inspect", "--format", form, tag], capture_output=True).stdout.strip()

    def num_bytes(self, tag: str) -> int:
        """Return the size of the image, uncompressed."""
        shown = run([*self.words, "image", "inspect", "--format", "{{.Size}}", tag], capture_output=True)
        return int(shown.stdout)


def find_engine(asked: str, cache: bool) -> Engine:
    """Return the engine that was asked for, or the first of podman and docker that is there."""
    if asked:
        return Engine(shlex.split(asked), cache)
    for name in ("podman", "docker"):
        if shutil.which(name):
            return Engine([name], cache)
    fail(
        "neither podman nor docker is on the path",
        "install one of them, or name one: make images ENGINE=/opt/bin/podman",
    )
    raise AssertionError


def find_base(engine: Engine, asked: str, sources: Path | None) -> tuple[str, Path | None]:
    """Return the base image and the package sources to build with.

    Where no registry serves the image, it is made of Debian's packages from this machine's own sources.
    """
    if run_quietly([*engine.words, "image", "exists" if engine.name == "podman" else "inspect", asked]):
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
    name = f"localhost/corebound/debian:{hashlib.sha256(listed.read_bytes()).hexdigest()[:12]}"
    if not run_quietly([*engine.words, "image", "inspect", name]):
        tar = CACHE / "debian.tar"
        # The addresses of the sources must not stay in the image.
        forget = 'rm -rf "$1/etc/apt/sources.list" "$1"/etc/apt/sources.list.d/* "$1"/var/log/*'
        words = ["mmdebstrap", "--quiet", "--variant=minbase", f"--customize-hook={forget}", own[0].split()[2]]
        run([*words, tar, *own], capture_output=True, env={**os.environ, "SOURCE_DATE_EPOCH": "0"})
        run([*engine.words, "import", tar, name], capture_output=True)
        tar.unlink()
    return name, sources or listed


def run_quietly(command: Sequence[str]) -> bool:
    """Return whether a command worked; its words are of no use to anybody."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False)
    return done.returncode == 0


def build_all(engine: Engine, options: argparse.Namespace) -> list[str]:
    """Build base and runtime and return the tag of each."""
    versions = read_versions(VERSIONS)
    base_image, sources = find_base(engine, versions["BASE_IMAGE"], options.apt_sources)
    wheels = wheelhouse()
    tags = [f"{versions['IMAGE_PREFIX']}/{name}:{version()}" for name in ("base", "runtime")]
    created = int(git("log", "-1", "--format=%ct"))
    dirty = "-dirty" if git("status", "--porcelain", "--", *CONTEXT) else ""
    arguments = {"SOURCE_DATE_EPOCH": str(created)}
    secrets = [f"id=apt_sources,src={sources}"] if sources else []
    with context() as folder:
        say(f"{tags[0]} from {base_image}")
        own = {"BASE_IMAGE": base_image, "JOB_UID": versions["JOB_UID"]}
        engine.build(folder, "images/base/Containerfile", tags[0], arguments | own, secret=secrets)
        say(f"{tags[1]}: compiling and installing")
        own = {
            "BASE": tags[0],
            "VERSION": version(),
            "REVISION": git("rev-parse", "HEAD") + dirty,
            "CREATED": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created)),
            "SSH_PORT": versions["SSH_PORT"],
        }
        contexts = [f"wheelhouse={wheels}"]
        engine.build(
            folder, "images/runtime/Containerfile", tags[1], arguments | own, secret=secrets, build_context=contexts
        )
    return tags


def save(engine: Engine, tag: str, path: Path) -> None:
    """Write an image into an archive that `podman load`, `docker load` and `ctr images import` read."""
    say(f"saving {tag} to {path}")
    path.unlink(missing_ok=True)
    form = ["--format=docker-archive"] if engine.name == "podman" else []
    run([*engine.words, "save", *form, "--output", path, tag], capture_output=True)
    with tarfile.open(path) as archive:
        assert archive.getmember("manifest.json").size > 0
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    Path(f"{path}.sha256").write_text(f"{digest}  {path.name}\n", encoding="utf-8")


def push(engine: Engine, tag: str, registry: str) -> str:
    """Push an image and return the name with the digest by which a manifest should name it."""
    target = f"{registry.rstrip('/')}/{tag.rpartition('/')[2]}"
    say(f"pushing {target}")
    run([*engine.words, "tag", tag, target], capture_output=True)
    with tempfile.NamedTemporaryFile() as file:
        if engine.name == "podman":
            run([*engine.words, "push", "--digestfile", file.name, target], capture_output=True)
            digest = Path(file.name).read_text(encoding="utf-8").strip()
        else:
            run([*engine.words, "push", target], capture_output=True)
            form = "{{index .RepoDigests 0}}"
            shown = run([*engine.words, "image", "inspect", "--format", form, target], capture_output=True).stdout
            digest = shown.strip().rpartition("@")[2]
    return f"{target.rpartition(':')[0]}@{digest}"


def main() -> None:
    """Build, and save or push when asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", default="", help="podman or docker, with options of its own if need be")
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
        save(engine, tags[-1], options.save)
    if options.push:
        print(push(engine, tags[-1], options.push))
    say(f"done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
