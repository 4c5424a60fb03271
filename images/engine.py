"""podman and docker: the few commands of theirs that building and delivering an image takes."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ENGINES = ("podman", "docker")


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"images: {text}", file=sys.stderr, flush=True)


def fail(text: str, hint: str = "") -> NoReturn:
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


def run_quietly(command: Sequence[str]) -> bool:
    """Return whether a command worked; its words are of no use to anybody."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False)
    return done.returncode == 0


class Engine:
    """podman or docker, with what a build of ours needs."""

    def __init__(self, words: Sequence[str], *, cache: bool = True) -> None:
        self.words = list(words)
        self.name = Path(self.words[0]).name
        self._cache = cache
        if self.name not in ENGINES:
            fail(f"ENGINE: expected podman or docker with options of its own, found {shlex.join(words)}")

    def build_command(
        self, folder: Path, file: str, tag: str, arguments: Mapping[str, str], **more: Sequence[str]
    ) -> list[str]:
        """Return the command that builds one Containerfile; `more` are options that may be given several times."""
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
        return [*command, str(folder)]

    def build(self, folder: Path, file: str, tag: str, arguments: Mapping[str, str], **more: Sequence[str]) -> None:
        """Build one Containerfile, whose output passes through on standard error."""
        command = self.build_command(folder, file, tag, arguments, **more)
        if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False).returncode != 0:
            fail(f"{self.name} could not build {file}; its own words are above")

    def has(self, tag: str) -> bool:
        """Return whether the image is here."""
        return run_quietly([*self.words, "image", "inspect", tag])

    def digest(self, tag: str) -> str:
        """Return the digest by which the image can be named; with docker its identity, before a pull or a push."""
        form = "{{.Digest}}"
        if self.name == "docker":
            form = "{{if .RepoDigests}}{{index .RepoDigests 0}}{{else}}{{.Id}}{{end}}"
        return self._inspect(tag, form).rpartition("@")[2]

    def num_bytes(self, tag: str) -> int:
        """Return the size of the image, uncompressed."""
        return int(self._inspect(tag, "{{.Size}}"))

    def save(self, tag: str, path: Path) -> None:
        """Write an image into an archive that podman, docker and containerd read, with what the role `image` checks."""
        say(f"saving {tag} to {path}")
        path.unlink(missing_ok=True)
        form = ["--format=docker-archive"] if self.name == "podman" else []
        run([*self.words, "save", *form, "--output", path, tag], capture_output=True)
        with tarfile.open(path) as archive:
            member = archive.extractfile("manifest.json")
            assert member is not None
            listed = json.loads(member.read())
        # The identity is the digest of the image's configuration, which is the same wherever the archive is loaded.
        identity = Path(listed[0]["Config"]).name.removesuffix(".json")
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        Path(f"{path}.sha256").write_text(f"{sha256}  {path.name}\n", encoding="utf-8")
        record = {"name": tag, "id": f"sha256:{identity}", "sha256": sha256, "bytes": path.stat().st_size}
        Path(f"{path}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def push(self, tag: str, registry: str) -> str:
        """Push an image and return the name with the digest by which a manifest should name it."""
        target = f"{registry.rstrip('/')}/{tag.rpartition('/')[2]}"
        say(f"pushing {target}")
        run([*self.words, "tag", tag, target], capture_output=True)
        if self.name == "podman":
            with tempfile.NamedTemporaryFile() as file:
                run([*self.words, "push", "--digestfile", file.name, target], capture_output=True)
                digest = Path(file.name).read_text(encoding="utf-8").strip()
        else:
            run([*self.words, "push", target], capture_output=True)
            digest = self.digest(target)
        return f"{target.rpartition(':')[0]}@{digest}"

    def _inspect(self, tag: str, form: str) -> str:
        return run([*self.words, "image", "inspect", "--format", form, tag], capture_output=True).stdout.strip()


def find_engine(asked: str, *, cache: bool = True) -> Engine:
    """Return the engine that was asked for, or the first of podman and docker that is there."""
    if asked:
        return Engine(shlex.split(asked), cache=cache)
    for name in ENGINES:
        if shutil.which(name):
            return Engine([name], cache=cache)
    fail(
        "neither podman nor docker is on the path",
        "install one of them, or name one: make images ENGINE=/opt/bin/podman",
    )
