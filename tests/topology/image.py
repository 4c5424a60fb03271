"""What the machines boot: a kernel and a small root of this machine's own distribution, built once; our code each time.

Both are kept in ~/.cache/corebound-topology (or COREBOUND_TOPOLOGY_DIR). None of it is installed on this machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.image import own_sources

ROOT = Path(__file__).resolve().parents[2]
GUEST = Path(__file__).parent / "guest"
# Debian's package -> a program by which it is known to be there.
PROGRAMS = {
    "qemu-system-x86": "qemu-system-x86_64",
    "mmdebstrap": "mmdebstrap",
    "libarchive-tools": "bsdtar",
    "util-linux": "setpriv",
}
# The full kernel, not the one for clouds: only this one divides nodes (numa=fake).
KERNEL = "linux-image-amd64"
PACKAGES = ("python3", "util-linux", "iproute2")
# Nothing in the machine reads these.
LEFT_OUT = (
    *("boot", "var/lib/apt/lists", "var/cache/apt", "usr/lib/x86_64-linux-gnu/perl", "usr/lib/x86_64-linux-gnu/gconv"),
    *("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/zoneinfo", "usr/share/perl5"),
)
BUILD_TIMEOUT_S = 600


class UnavailableError(Exception):
    """This machine cannot run the machines; the text is the reason."""


@dataclass(frozen=True)
class Image:
    """What QEMU boots, our code apart."""

    kernel: Path
    root: Path


def cache_folder() -> Path:
    """Returns where kernel and root are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("COREBOUND_TOPOLOGY_DIR") or cache / "corebound-topology")


def install_programs() -> None:
    """Installs with apt-get what is missing. Raises: UnavailableError when that cannot be done."""
    if platform.machine() != "x86_64":
        raise UnavailableError(f"this machine lacks an x86-64 processor: it is {platform.machine()}")
    missing = [name for name, program in PROGRAMS.items() if shutil.which(program) is None]
    if not missing:
        return
    lacks = f"this machine lacks {', '.join(missing)}"
    if shutil.which("apt-get") is None:
        raise UnavailableError(f"{lacks}, and has no apt-get to install them")
    if os.geteuid() != 0:
        raise UnavailableError(f"{lacks}, and only root can install them")
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    for step in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
        done = subprocess.run(
            [*apt, *step], env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UnavailableError(f"{lacks}, and apt-get {step[0]} failed: {last}")


def image() -> Image:
    """Returns kernel and root, built when missing. Raises: UnavailableError where no package offers them."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    sources = own_sources(Path("/etc/apt"), codename) if codename else []
    recipe = "\n".join((*sources, KERNEL, *PACKAGES, *LEFT_OUT))
    folder = cache_folder() / hashlib.sha256(recipe.encode()).hexdigest()[:12]
    built = Image(folder / "vmlinuz", folder / "root.cpio")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / "lock"):
        if not folder.is_dir():
            kernel_package = _kernel_package() if sources else None
            if kernel_package is None:
                raise UnavailableError(f"this machine lacks a package source in /etc/apt that offers {KERNEL}")
            with tempfile.TemporaryDirectory(dir=folder.parent) as work:
                new = Path(work) / "new"
                new.mkdir()
                _fetch_kernel(kernel_package, Path(work), new / "vmlinuz")
                _build_root(codename, sources, Path(work) / "root.tar", new / "root.cpio")
                new.rename(folder)
    return built


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps two test runs from building at once."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _kernel_package() -> str | None:
    """Returns the package that the name of the current kernel stands for."""
    listed = subprocess.run(["apt-cache", "depends", KERNEL], capture_output=True, text=True, timeout=60, check=False)
    match = re.search(r"Depends: (linux-image-\S+)", listed.stdout)
    return None if match is None else match[1]


def _fetch_kernel(package: str, work: Path, target: Path) -> None:
    _run("apt-get", "-q", "download", package, folder=work)
    (archive,) = work.glob("linux-image-*.deb")
    _run("dpkg-deb", "-x", str(archive), str(work / "kernel"), folder=work)
    (kernel,) = (work / "kernel/boot").glob("vmlinuz-*")
    shutil.move(kernel, target)


def _build_root(codename: str, sources: list[str], tar: Path, target: Path) -> None:
    remove = 'cd "$1" && rm -rf ' + " ".join(LEFT_OUT)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    _run(*command, f"--customize-hook={remove}", codename, str(tar), *sources, folder=tar.parent)
    # Not compressed: the machine would spend longer on that than QEMU does on reading it.
    _run("bsdtar", "--format=newc", "-cf", str(target), f"@{tar}", folder=tar.parent)


def _run(*command: str, folder: Path) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr.strip()}")


def add_our_code(root: Path, cases: str, target: Path) -> None:
    """Writes a root with this checkout's package, what its command line needs, the guest's programs and `cases`."""
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        top = Path(work)
        packages = top / "corebound/packages"
        unwanted = shutil.ignore_patterns("__pycache__", "lib", "demo")
        shutil.copytree(ROOT / "runtime/corebound", packages / "corebound", ignore=unwanted)
        for name in _requirements("click", "rich"):
            for file in importlib.metadata.files(name) or ():
                if file.suffix == ".py":
                    copy = packages / file
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file.locate(), copy)
        for path in GUEST.iterdir():
            if path.is_file() and path.name != "init":
                shutil.copy(path, top / "corebound" / path.name)
        shutil.copy(GUEST / "init", top / "init")
        (top / "corebound/cases.json").write_text(cases, encoding="utf-8")
        ours = Path(work + ".cpio")
        names = (path.name for path in top.iterdir())
        try:
            _run("bsdtar", "--format=newc", "--uid=0", "--gid=0", "-cf", str(ours), *names, folder=top)
            with target.open("wb") as whole:
                # The kernel unpacks one archive after the other.
                for part in (root, ours):
                    with part.open("rb") as archive:
                        shutil.copyfileobj(archive, whole)
        finally:
            ours.unlink(missing_ok=True)


def _requirements(*names: str) -> set[str]:
    """Returns the distributions and all that they need."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            for line in importlib.metadata.requires(name) or ():
                if "extra ==" not in line:
                    waiting.append(re.split(r"[^A-Za-z0-9_.-]", line)[0])
    return found
