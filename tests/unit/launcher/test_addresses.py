from __future__ import annotations

import ipaddress
import subprocess
from pathlib import Path

import pytest

from corebound.errors import LaunchError
from corebound.launcher.addresses import (
    Address,
    HostAddresses,
    interface_towards,
    machine_id,
    meeting_address,
    own_addresses,
    source_address,
)


def host(name: str, *addresses: str, reached_at: str | None = None, machine: str | None = None) -> HostAddresses:
    parsed = [text.split(" ") for text in addresses]
    return HostAddresses(
        host=name,
        machine=machine or name,
        addresses=tuple(Address(word[0], *_split(word[1])) for word in parsed),
        reached_at=reached_at,
    )


def _split(text: str) -> tuple[str, int]:
    ip, _, length = text.partition("/")
    return ip, int(length)


def test_hosts_meet_in_the_network_that_all_are_on() -> None:
    a = host("a", "mgmt 10.0.0.1/24", "fabric 192.168.7.1/24", reached_at="10.0.0.1")
    b = host("b", "fabric 192.168.7.2/24", "other 10.9.0.2/24")
    assert meeting_address([a, b]) == "192.168.7.1"


def test_of_several_common_networks_the_one_the_launcher_used_is_taken() -> None:
    a = host("a", "eth0 10.0.0.1/24", "eth1 10.1.0.1/24", reached_at="10.1.0.1")
    b = host("b", "eth0 10.0.0.2/24", "eth1 10.1.0.2/24")
    assert meeting_address([a, b]) == "10.1.0.1"


def test_a_bridge_that_has_the_same_address_on_every_host_leads_nowhere() -> None:
    """#2612, #6497, #6875: `hostname -I` names docker's bridge first, and ranks never meet."""
    a = host("a", "docker0 172.17.0.1/16", "eth0 10.0.0.1/24")
    b = host("b", "docker0 172.17.0.1/16", "eth0 10.0.0.2/24")
    assert meeting_address([a, b]) == "10.0.0.1"


def test_across_routed_networks_the_address_that_the_launcher_reached_counts() -> None:
    a = host("a", "eth0 10.0.0.1/24", "eth1 10.1.0.1/24", reached_at="10.1.0.1")
    assert meeting_address([a, host("b", "eth0 10.2.0.2/24")]) == "10.1.0.1"


def test_a_launcher_that_came_by_the_loopback_says_nothing_about_others() -> None:
    a = host("a", "eth0 10.0.0.1/24", reached_at="127.0.0.1")
    assert meeting_address([a, host("b", "eth0 10.2.0.2/24")]) == "10.0.0.1"


def test_hosts_that_are_one_machine_meet_on_the_loopback() -> None:
    assert meeting_address([host("a", machine="m"), host("b", machine="m")]) == "127.0.0.1"


def test_a_first_host_that_nobody_can_reach_is_an_error_that_names_the_flag() -> None:
    with pytest.raises(LaunchError, match="host a has no address") as caught:
        meeting_address([host("a"), host("b", "eth0 10.0.0.2/24")])
    assert "--master_addr" in (caught.value.hint or "")


def test_own_addresses_are_those_of_the_kernel_without_loopback_and_link_local() -> None:
    """#4649, #4907, #274: "many addresses, IPv6 or link-local first"."""
    found = own_addresses()
    for address in found:
        ip = ipaddress.ip_address(address.ip)
        assert not ip.is_loopback and not ip.is_link_local
        assert ip in address.network
        assert Path("/sys/class/net", address.interface).exists()
    named = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()
    assert {address.ip for address in found} == {ip for ip in named if not ipaddress.ip_address(ip).is_link_local}


def test_the_way_to_ourselves_is_by_the_interface_that_has_the_address() -> None:
    assert source_address("127.0.0.1") == "127.0.0.1"
    assert interface_towards("127.0.0.1", own_addresses()) is None
    for address in own_addresses():
        assert interface_towards(address.ip, own_addresses()) == address.interface


def test_this_machine_is_always_the_same_one() -> None:
    assert machine_id() == machine_id() and len(machine_id()) > 36
