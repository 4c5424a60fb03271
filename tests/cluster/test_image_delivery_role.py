"""The role image_delivery: a small image into a store of its own of podman, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.ansible_runs import ROOT, changed_tasks, recap, run_playbook
from lab import machine
from lab.layout import Layout
from lab.podman import Podman
from unit.tools.loading import load_script

LOCAL = ROOT / "inventories/local"
NAME = "localhost/corebound-test/tiny:1"
pytestmark = [pytest.mark.images, pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Delivery:
    """An engine of its own and an archive for it."""

    podman: Podman
    archive: Path
    folder: Path

    def save(self, content: str) -> str:
        """Writes an archive with an image that holds `content` and returns the image's identity."""
        (self.folder / "build").mkdir(exist_ok=True)
        (self.folder / "build/file").write_text(content, encoding="utf-8")
        (self.folder / "build/Containerfile").write_text("FROM scratch\nCOPY file /file\n", encoding="utf-8")
        self.podman("build", "--quiet", "--tag", NAME, str(self.folder / "build"), timeout_s=120)
        load_script("images/engine.py").Engine(self.podman.words).save(NAME, self.archive)
        self.podman("image", "rm", NAME)
        record: dict[str, Any] = json.loads(Path(f"{self.archive}.json").read_text(encoding="utf-8"))
        return str(record["id"])

    def run(self, playbook: str = "one_role.yml", **extra: Any) -> subprocess.CompletedProcess[str]:
        """Returns what a run of the role came to on this machine."""
        variables = {
            "one_role": "image_delivery",
            "image_delivery_archive": str(self.archive),
            "image_delivery_command": self.podman.words,
            "image_delivery_dir": str(self.folder / "on-the-host"),
        }
        return run_playbook(f"../tests/cluster/{playbook}", LOCAL, timeout_s=300, **{**variables, **extra})

    def identity(self) -> str:
        """Returns the identity of the image that the engine has under the name; nothing where it has none."""
        shown = self.podman("image", "inspect", "--format", "sha256:{{.Id}}", NAME, check=False)
        return shown.stdout.strip() if shown.returncode == 0 else ""


@pytest.fixture
def delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Delivery]:
    reason = machine.why_not()
    if reason:
        pytest.skip(reason)
    machine.install_packages()
    # Podman takes no longer path than 50 characters for its runtime folder.
    home = Path(tempfile.mkdtemp(prefix="corebound-"))
    podman = Podman(Layout(home))
    podman.configure()
    monkeypatch.setenv("CONTAINERS_CONF", str(podman.layout.containers_conf))
    yield Delivery(podman, tmp_path / "tiny.tar", tmp_path)
    podman("system", "reset", "--force", check=False)
    shutil.rmtree(home)


def test_an_image_is_loaded_once_replaced_by_a_new_one_and_removed_by_reset(delivery: Delivery) -> None:
    identity = delivery.save("one")
    assert delivery.identity() == ""
    first = delivery.run()
    assert first.returncode == 0, first.stdout
    assert delivery.identity() == identity
    assert not (delivery.folder / "on-the-host/image.tar").exists()

    second = delivery.run()
    assert (second.returncode, recap(second.stdout)["changed"]) == (0, 0), second.stdout
    assert "localhost/corebound-test/tiny@sha256:" in second.stdout

    # Saving needs the name in the engine; what it removes is the new image, not the one that was delivered.
    newer = delivery.save("two")
    assert newer != identity
    third = delivery.run()
    assert third.returncode == 0, third.stdout
    assert delivery.identity() == newer
    assert identity.removeprefix("sha256:") not in delivery.podman("image", "ls", "-a", "-q", "--no-trunc").stdout

    undone = delivery.run("undo_role.yml")
    assert undone.returncode == 0, undone.stdout
    assert delivery.identity() == ""
    assert not (delivery.folder / "on-the-host").exists()
    again = delivery.run("undo_role.yml")
    assert (again.returncode, recap(again.stdout)["changed"]) == (0, 0), again.stdout


def test_an_image_that_was_there_before_is_not_removed_by_reset(delivery: Delivery) -> None:
    identity = delivery.save("one")
    delivery.podman("load", "--input", str(delivery.archive))
    found = delivery.run()
    assert (found.returncode, changed_tasks(found.stdout, "localhost")) == (0, []), found.stdout
    assert delivery.run("undo_role.yml").returncode == 0
    assert delivery.identity() == identity


def test_a_damaged_archive_is_refused_before_the_engine_is_asked(delivery: Delivery) -> None:
    delivery.save("one")
    with delivery.archive.open("r+b") as file:
        file.seek(600)
        file.write(b"damaged")
    done = delivery.run(image_delivery_command=["/nonexistent/podman"])
    text = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert "expected SHA-256" in text and "Nothing was changed" in text
    assert not (delivery.folder / "on-the-host").exists()


def test_a_missing_archive_says_how_to_make_it(delivery: Delivery) -> None:
    done = delivery.run()
    assert done.returncode != 0
    assert f"make images SAVE={delivery.archive}" in " ".join(done.stdout.split())


def test_check_mode_changes_nothing(delivery: Delivery) -> None:
    delivery.save("one")
    variables = {"one_role": "image_delivery", "image_delivery_archive": str(delivery.archive)}
    variables |= {"image_delivery_command": delivery.podman.words}
    variables |= {"image_delivery_dir": str(delivery.folder / "on-the-host")}
    done = run_playbook("../tests/cluster/one_role.yml", LOCAL, "--check", timeout_s=300, **variables)
    assert done.returncode == 0, done.stdout
    assert delivery.identity() == ""
    assert not (delivery.folder / "on-the-host").exists()


@pytest.fixture
def containerd() -> Iterator[list[str]]:
    """Starts a containerd of its own and yields the command that talks to it."""
    if not shutil.which("containerd") or not shutil.which("ctr"):
        pytest.skip("this machine lacks containerd")
    home = Path(tempfile.mkdtemp(prefix="corebound-"))
    text = (
        f'version = 2\nroot = "{home}/root"\nstate = "{home}/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
    )
    (home / "config.toml").write_text(f'{text}[grpc]\naddress = "{home}/socket"\n', encoding="utf-8")
    with (home / "log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(["containerd", "-c", str(home / "config.toml")], stdout=log, stderr=log)
        try:
            words = ["ctr", "--address", f"{home}/socket", "-n", "k8s.io"]
            deadline = time.monotonic() + 60
            while subprocess.run([*words, "version"], capture_output=True, check=False).returncode != 0:
                assert time.monotonic() < deadline and server.poll() is None, (home / "log").read_text(encoding="utf-8")
                time.sleep(0.2)
            yield words
        finally:
            server.terminate()
            server.wait(timeout=60)
            shutil.rmtree(home)


def test_containerd_gets_it_in_the_namespace_of_kubernetes_under_its_digest_too(
    delivery: Delivery, containerd: list[str]
) -> None:
    def names() -> list[str]:
        listed = subprocess.run([*containerd, "images", "ls", "-q"], capture_output=True, text=True, check=True)
        return listed.stdout.split()

    variables: dict[str, Any] = {"image_delivery_engine": "containerd", "image_delivery_command": containerd}
    delivery.save("one")
    first = delivery.run(**variables)
    assert first.returncode == 0, first.stdout
    by_digest = [name for name in names() if name.startswith("localhost/corebound-test/tiny@sha256:")]
    assert names() == sorted([NAME, *by_digest]) and len(by_digest) == 1
    second = delivery.run(**variables)
    assert (second.returncode, changed_tasks(second.stdout, "localhost")) == (0, []), second.stdout
    assert by_digest[0] in second.stdout

    delivery.save("two")
    third = delivery.run(**variables)
    assert third.returncode == 0, third.stdout
    assert by_digest[0] not in names() and len(names()) == 2
    undone = delivery.run("undo_role.yml", **variables)
    assert undone.returncode == 0, undone.stdout
    assert names() == []
