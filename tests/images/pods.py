"""Two workers and launchers on a network of podman, with what the operator of an MPIJob would give their pods."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from images.support import HARDENED, Images

JOB_UID = 1000
NETWORK = "corebound-images"
WORKERS = ("corebound-worker-0", "corebound-worker-1")
STARTED_WITHIN_S = 60


def make_secret(folder: Path) -> Path:
    """Makes a job's key pair as a Secret is mounted: its files belong to root, and the pod's group may read them."""
    folder.mkdir()
    key = folder / "id_rsa"
    words = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "521", "-N", "", "-C", "", "-f", str(key)]
    subprocess.run(words, check=True, timeout=60)
    shutil.copyfile(key.with_suffix(".pub"), folder / "authorized_keys")
    for path in (*folder.iterdir(), folder):
        os.chown(path, 0, JOB_UID)
        path.chmod(0o550 if path.is_dir() else 0o440)
    return folder


@dataclass(frozen=True)
class Job:
    """Workers that run, and what it takes to run a launcher beside them."""

    images: Images
    secret: Path
    hostfile: Path
    addresses: dict[str, str]

    def options(self, name: str, secret: Path) -> list[str]:
        """Returns podman's options of one pod."""
        words = [*HARDENED, f"--network={NETWORK}", f"--hostname={name}", f"--volume={secret}:/home/corebound/.ssh:ro"]
        return words + [f"--add-host={host}:{address}" for host, address in self.addresses.items()]

    def start(self) -> None:
        """Starts the workers and waits for their servers."""
        for name, address in self.addresses.items():
            words = ["run", "--detach", f"--name={name}", f"--ip={address}", *self.options(name, self.secret)]
            self.images.podman(*words, self.images.runtime, "corebound-worker")
        deadline = time.monotonic() + STARTED_WITHIN_S
        while not all(self.is_healthy(name) for name in self.addresses):
            assert time.monotonic() < deadline, [self.images.podman("logs", name).stderr for name in self.addresses]
            time.sleep(0.5)

    def is_healthy(self, name: str) -> bool:
        """Returns what the health check of the image says of a container."""
        return self.images.podman("healthcheck", "run", name, check=False).returncode == 0

    def launch(
        self, *command: str, secret: Path | None = None, environ: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Returns what `corebound-launcher COMMAND` came to in a launcher pod."""
        words = ["run", "--rm", *self.options("launcher", secret or self.secret)]
        words += [
            f"--volume={self.hostfile}:/etc/mpi/hostfile:ro",
            *(f"--env={k}={v}" for k, v in (environ or {}).items()),
        ]
        words += [self.images.runtime, "corebound-launcher", *command]
        return self.images.podman(*words, timeout_s=900, check=False)

    def stop(self) -> None:
        """Removes workers and network."""
        self.images.podman("rm", "--force", "--time=0", *self.addresses, check=False)
        self.images.podman("network", "rm", "--force", NETWORK, check=False)


def make_job(images: Images, folder: Path) -> Job:
    """Makes network, key pair and hostfile; no pod runs yet."""
    # Podman chooses addresses that no other network of this machine has.
    images.podman("network", "rm", "--force", NETWORK, check=False)
    images.podman("network", "create", NETWORK)
    network = json.loads(images.podman("network", "inspect", NETWORK).stdout)[0]
    subnet = ipaddress.ip_network(network["subnets"][0]["subnet"])
    addresses = {name: str(subnet[11 + number]) for number, name in enumerate(WORKERS)}
    hostfile = folder / "hostfile"
    hostfile.write_text("".join(f"{name} slots=1\n" for name in WORKERS), encoding="utf-8")
    folder.chmod(0o755)
    return Job(images, make_secret(folder / "secret"), hostfile, addresses)
