"""Builds Kubernetes from Debian's source package with Debian's compiler, into a cache folder; nothing is installed.

No registry and no download of a release is needed: what apt-get has its packages from is enough.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from k8s.layout import PAUSE_IMAGE, ClusterError, Layout
from k8s.machine import run

RELEASE = "bookworm"
VERSION = "1.20.2"
PACKAGES = (
    "golang-1.19-go",
    "golang-1.19-src",
    "golang-github-modern-go-reflect2-dev",
    "etcd-server",
    "kubernetes-client",
    "containerd",
    "runc",
    "containernetworking-plugins",
)
COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
VENDOR = "k8s.io/kubernetes/vendor/k8s.io"
# Compiling the API server takes minutes, and many of them beside other work.
COMPILE_TIMEOUT_S = 3600.0
# Directories whose types appear in the generated file of API descriptions are marked with this; these are not asked.
OPENAPI_MARK = "+k8s:openapi-gen="
OPENAPI_WITHOUT = ("code-generator", "sample-apiserver", "kube-openapi")


def build(layout: Layout, components: Sequence[str] = COMPONENTS) -> list[str]:
    """Makes sure that packages and programs are there; returns what had to be made."""
    made: list[str] = []
    if not stamp(layout, "packages").exists():
        fetch_packages(layout)
        stamp(layout, "packages").touch()
        made.append("packages")
    missing = [name for name in components if not program(layout, name).exists()]
    if missing and not stamp(layout, f"source-{VERSION}").exists():
        fetch_source(layout)
        stamp(layout, f"source-{VERSION}").touch()
        made.append("source")
    for name in missing:
        started = time.monotonic()
        compile_component(layout, name)
        print(f"k8s: {name} {VERSION} built in {time.monotonic() - started:.0f} s", file=sys.stderr)
        made.append(name)
    if not pause_archive(layout).exists():
        if not (source(layout) / "build/pause").exists():
            fetch_source(layout)
        make_pause(layout)
        made.append("pause")
    return made


def stamp(layout: Layout, name: str) -> Path:
    """Returns the file that says that a step is done."""
    return layout.home / f".done-{name}"


def program(layout: Layout, name: str) -> Path:
    """Returns where a compiled program is; another version of it would be another file."""
    return layout.programs / f"{name}-{VERSION}"


def pause_archive(layout: Layout) -> Path:
    """Returns the image of the process that holds a pod's namespaces."""
    return layout.programs / "pause.tar"


def go_path(layout: Layout) -> Path:
    """Returns the root of the Go workspace."""
    return layout.home / "gopath"


def source(layout: Layout) -> Path:
    """Returns the unpacked source of Kubernetes."""
    return go_path(layout) / "src/k8s.io/kubernetes"


def apt_environment(layout: Layout) -> dict[str, str]:
    """Writes an apt configuration with folders of its own and Debian's source packages, and returns how to name it."""
    folder = layout.home / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    mirror = debian_mirror()
    (folder / "sources.list").write_text(
        f"deb {mirror} {RELEASE} main\ndeb-src {mirror} {RELEASE} main\n", encoding="utf-8"
    )
    (folder / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{folder}/sources.list";\nDir::Etc::sourceparts "-";\n'
        f'Dir::State::lists "{folder}/lists";\nDir::State::status "{folder}/status";\nDir::Cache "{folder}/cache";\n'
        'APT::Sandbox::User "root";\n',
        encoding="utf-8",
    )
    return {"APT_CONFIG": str(folder / "apt.conf")}


def debian_mirror() -> str:
    """Returns the address of the Debian archive that this machine installs its own packages from."""
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            words = line.split()
            if path.suffix == ".sources" and words[:1] == ["URIs:"]:
                return words[1]
            if path.suffix == ".list" and words[:1] == ["deb"]:
                return next(word for word in words[1:] if "://" in word)
    raise ClusterError("no package source in /etc/apt", hint="the cluster is built from Debian's packages")


def fetch_packages(layout: Layout) -> None:
    """Downloads the packages and unpacks them below the cache folder."""
    environ = apt_environment(layout)
    run("apt-get", "-qq", "update", env=environ, timeout_s=600)
    folder = layout.home / "debs"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    run("apt-get", "-qq", "download", *PACKAGES, env=environ, cwd=folder, timeout_s=1200)
    layout.packages.mkdir(parents=True, exist_ok=True)
    for package in sorted(folder.glob("*.deb")):
        run("dpkg", "-x", package, layout.packages, timeout_s=600)
    shutil.rmtree(folder)


def fetch_source(layout: Layout) -> None:
    """Downloads and unpacks the source of Kubernetes with what it depends on, and makes it fit for this compiler."""
    environ = apt_environment(layout)
    run("apt-get", "-qq", "update", env=environ, timeout_s=600)
    folder = layout.home / "source"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    run("apt-get", "-qq", "source", "--download-only", "kubernetes", env=environ, cwd=folder, timeout_s=1200)
    (archive,) = folder.glob("kubernetes_*.orig.tar.gz")
    if source(layout).exists():
        shutil.rmtree(source(layout))
    source(layout).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as unpacked:
        unpacked.extractall(folder, filter="tar")
    (folder / f"kubernetes-{VERSION}").rename(source(layout))
    shutil.rmtree(folder)
    # The version that Kubernetes brings crashes the API server when it was compiled by Go 1.18 or later.
    vendored = source(layout) / "vendor/github.com/modern-go/reflect2"
    shutil.rmtree(vendored)
    shutil.copytree(layout.package_file("usr/share/gocode/src/github.com/modern-go/reflect2"), vendored)
    generate_openapi(layout)


def go(layout: Layout, *words: str) -> None:
    """Runs the compiler on the source."""
    compiler = layout.package_file("usr/lib/go-1.19")
    temporary = layout.home / "gotmp"
    temporary.mkdir(parents=True, exist_ok=True)
    environ = {
        "GOROOT": str(compiler),
        "GOPATH": str(go_path(layout)),
        "GOCACHE": str(layout.home / "gocache"),
        "GOTMPDIR": str(temporary),
        "GO111MODULE": "off",
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
        "PATH": f"{compiler}/bin:{os.environ['PATH']}",
    }
    run(*words, env=environ, cwd=source(layout), timeout_s=COMPILE_TIMEOUT_S)


def openapi_packages(root: Path) -> list[str]:
    """Returns the Go packages below vendor/k8s.io whose types appear in the API's description."""
    found = set()
    for module in sorted((root / "vendor/k8s.io").iterdir()):
        if module.name in OPENAPI_WITHOUT or not module.is_dir():
            continue
        # The modules are links into staging/, which rglob does not follow below its start, but does at it.
        for path in module.resolve().rglob("*.go"):
            if OPENAPI_MARK in path.read_text(encoding="utf-8"):
                inside = path.parent.relative_to(module.resolve())
                found.add(str(Path("k8s.io/kubernetes/vendor/k8s.io", module.name, inside)))
    return sorted(found)


def generate_openapi(layout: Layout) -> None:
    """Generates the one file that the source package lacks: the descriptions of the API's types."""
    generator = layout.home / "gotmp/openapi-gen"
    go(layout, "go", "build", "-o", str(generator), "./vendor/k8s.io/kube-openapi/cmd/openapi-gen")
    words = [str(generator), "--logtostderr", "-i", ",".join(openapi_packages(source(layout)))]
    words += ["-p", "k8s.io/kubernetes/pkg/generated/openapi", "-O", "zz_generated.openapi"]
    words += ["-h", "vendor/k8s.io/code-generator/hack/boilerplate.go.txt"]
    go(layout, *words, "-r", str(layout.home / "gotmp/violations"))


def compile_component(layout: Layout, name: str) -> None:
    """Compiles one program of Kubernetes; it is moved to its place when it is whole."""
    layout.programs.mkdir(parents=True, exist_ok=True)
    version = f"{VENDOR}/component-base/version"
    major, minor = VERSION.split(".")[:2]
    values = {
        f"{version}.gitVersion": f"v{VERSION}",
        f"{version}.gitMajor": major,
        f"{version}.gitMinor": minor,
        f"{VENDOR}/client-go/pkg/version.gitVersion": f"v{VERSION}",
    }
    flags = " ".join(["-s", "-w", *(f"-X {key}={value}" for key, value in values.items())])
    unfinished = program(layout, name).with_suffix(".unfinished")
    go(layout, "go", "build", "-ldflags", flags, "-o", str(unfinished), f"./cmd/{name}")
    unfinished.rename(program(layout, name))


def make_pause(layout: Layout) -> None:
    """Compiles the process that holds a pod's namespaces and wraps it into an image, as no registry is in reach."""
    compiled = layout.programs / "pause"
    run("gcc", "-Os", "-static", "-DVERSION=3.2", "-o", compiled, source(layout) / "build/pause/linux/pause.c")
    write_image(pause_archive(layout), PAUSE_IMAGE, compiled)
    compiled.unlink()


def write_image(archive: Path, name: str, executable: Path) -> None:
    """Writes an OCI archive of an image that holds one program and runs it."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as contents:
        entry = tarfile.TarInfo(executable.name)
        entry.size, entry.mode = executable.stat().st_size, 0o755
        with executable.open("rb") as program_file:
            contents.addfile(entry, program_file)
    blobs: dict[str, bytes] = {}

    def keep(content: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    kind = "application/vnd.oci.image"
    layers = [keep(layer.getvalue(), f"{kind}.layer.v1.tar")]
    settings = {"architecture": "amd64", "os": "linux", "config": {"Entrypoint": [f"/{executable.name}"]}}
    settings["rootfs"] = {"type": "layers", "diff_ids": [entry["digest"] for entry in layers]}
    config = keep(json.dumps(settings).encode(), f"{kind}.config.v1+json")
    manifest = {"schemaVersion": 2, "config": config, "layers": layers}
    described = keep(json.dumps(manifest).encode(), f"{kind}.manifest.v1+json")
    described["annotations"] = {"io.containerd.image.name": name}
    blobs["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [described]}).encode()
    with tarfile.open(archive, "w") as written:
        for path, content in sorted(blobs.items()):
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            written.addfile(entry, io.BytesIO(content))
