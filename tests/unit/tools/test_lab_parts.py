"""What the lab computes before it starts anything: podman's settings, package sources, and what pip on a node needs."""

from __future__ import annotations

import resource
import tomllib
from pathlib import Path

import pytest

from lab import access, image, layout
from lab.podman import containers_conf

DEB822 = """\
Types: deb
# a snapshot
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian.gpg

Types: deb-src
URIs: http://mirror.example/source
Suites: bookworm
Components: main

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""


def test_sources_of_both_forms_become_lines_without_options(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (parts / "debian.sources").write_text(DEB822, encoding="utf-8")
    (tmp_path / "sources.list").write_text(
        "# old\ndeb [arch=amd64 signed-by=/k.gpg] http://one.example/debian bookworm-security main\n"
        "deb http://other.example stable main\n",
        encoding="utf-8",
    )
    assert image.own_sources(tmp_path, "bookworm") == [
        "deb http://mirror.example/debian bookworm main contrib",
        "deb http://one.example/debian bookworm-security main",
        "deb http://mirror.example/debian bookworm-updates main contrib",
    ]


@pytest.mark.parametrize(("cgroup_v2", "runtime"), [(True, "crun"), (False, "runc")])
def test_settings_ask_for_no_more_than_the_machine_gives(cgroup_v2: bool, runtime: str) -> None:
    settings = tomllib.loads(containers_conf(20000, resource.RLIM_INFINITY, cgroup_v2=cgroup_v2))
    assert settings["containers"]["default_ulimits"] == ["nofile=20000:20000", "nproc=32768:32768"]
    assert settings["engine"]["runtime"] == runtime
    few = tomllib.loads(containers_conf(1024, 100, cgroup_v2=cgroup_v2))
    assert few["containers"]["default_ulimits"] == ["nofile=1024:1024", "nproc=100:100"]


def test_a_node_sees_the_folders_that_pip_reads_here_and_nothing_else(tmp_path: Path) -> None:
    wheels, index = tmp_path / "wheels", tmp_path / "mirror/simple"
    for folder in (wheels, index):
        folder.mkdir(parents=True)
    settings = {
        "find-links": f"{wheels} https://wheels.example/cpu",
        "extra-index-url": index.as_uri(),
        "cert": str(tmp_path / "missing.crt"),
    }
    assert access.mounts(settings) == [f"--volume={path}:{path}:ro" for path in (wheels, index.parent)]
    environ = access.pip_environment(settings)
    assert environ["PIP_EXTRA_INDEX_URL"] == index.as_uri()
    assert "PIP_CERT" not in environ


def test_certificates_of_this_machine_reach_a_node_under_one_name(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.crt"
    bundle.touch()
    assert access.mounts({"cert": str(bundle)}) == [f"--volume={bundle}:{access.CA_ON_NODE}:ro"]
    assert access.pip_environment({"cert": str(bundle)}) == {"PIP_CERT": access.CA_ON_NODE}


def test_every_node_has_an_address_of_its_own_in_the_subnet() -> None:
    members = layout.nodes(layout.MAX_NODES)
    prefix = layout.SUBNET.removesuffix("0/24")
    assert len({node.address for node in members}) == layout.MAX_NODES
    assert all(node.address.startswith(prefix) and node.address != layout.GATEWAY for node in members)
