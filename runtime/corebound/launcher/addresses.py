"""Where ranks of several hosts can meet: a machine's own addresses, and the choice among those of the first host."""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corebound.errors import LaunchError

_IFF_UP = 1
_DISCARD_PORT = 9


@dataclass(frozen=True)
class Address:
    """An address of this machine, with the length of its network's prefix."""

    interface: str
    ip: str
    prefix_length: int

    @property
    def network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        """The network that the address belongs to."""
        return ipaddress.ip_network(f"{self.ip}/{self.prefix_length}", strict=False)


@dataclass(frozen=True, kw_only=True)
class HostAddresses:
    """What one host says of itself: `machine` names its network stack, `reached_at` is where the launcher found it."""

    host: str
    machine: str
    addresses: tuple[Address, ...]
    reached_at: str | None = None


class _SockAddr(ctypes.Structure):
    _fields_ = (("family", ctypes.c_ushort), ("data", ctypes.c_ubyte * 26))


class _IfAddrs(ctypes.Structure):
    pass


_IfAddrs._fields_ = (
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(_SockAddr)),
    ("netmask", ctypes.POINTER(_SockAddr)),
)


def own_addresses() -> tuple[Address, ...]:
    """Return the addresses by which others may reach this machine: no loopback, nothing link-local, IPv4 first.

    Raises: LaunchError when the kernel does not tell them.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    head = ctypes.POINTER(_IfAddrs)()
    if libc.getifaddrs(ctypes.byref(head)) != 0:
        number = ctypes.get_errno()
        raise LaunchError(f"the addresses of this machine cannot be read: {os.strerror(number)}")
    found = []
    try:
        entry = head
        while entry:
            item = entry.contents
            if item.address and item.netmask and item.flags & _IFF_UP:
                address = _address(item)
                if address is not None:
                    found.append(address)
            entry = item.next
    finally:
        libc.freeifaddrs(head)
    return tuple(sorted(found, key=lambda address: ":" in address.ip))


def _address(item: Any) -> Address | None:
    family = item.address.contents.family
    if family == socket.AF_INET:
        part = slice(2, 6)
    elif family == socket.AF_INET6:
        part = slice(6, 22)
    else:
        return None
    ip = ipaddress.ip_address(bytes(item.address.contents.data[part]))
    if ip.is_loopback or ip.is_link_local:
        return None
    length = sum(byte.bit_count() for byte in bytes(item.netmask.contents.data[part]))
    return Address(item.name.decode(), str(ip), length)


def machine_id() -> str:
    """Return what is the same for all processes that share this network stack, and differs from every other."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}:{os.stat('/proc/self/ns/net').st_ino}"  # noqa: PTH116  a path object would follow into the pid


def source_address(peer: str) -> str | None:
    """Return which of our addresses packets to `peer` leave from, None when there is no route. Nothing is sent."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(peer, _DISCARD_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    except OSError:
        return None


def interface_towards(peer: str, addresses: Sequence[Address]) -> str | None:
    """Return the interface that reaches `peer`; None for the loopback, or without a route."""
    source = source_address(peer)
    return next((address.interface for address in addresses if address.ip == source), None)


def meeting_address(hosts: Sequence[HostAddresses]) -> str:
    """Return the address of the first host at which all others reach it.

    An address in a network that every host is on comes first, and among those the one by which the launcher found
    the host. An address that several hosts have (a bridge of a container engine) leads nowhere and does not count.

    Raises: LaunchError when the first host has no address that could be reached from elsewhere.
    """
    first, *others = hosts
    if all(other.machine == first.machine for other in others):
        return "127.0.0.1"
    elsewhere = [other for other in others if other.machine != first.machine]
    taken = {address.ip for other in elsewhere for address in other.addresses}
    own = [address for address in first.addresses if address.ip not in taken]
    shared = [
        address.ip
        for address in own
        if all(any(theirs.network == address.network for theirs in other.addresses) for other in elsewhere)
    ]
    if shared:
        return first.reached_at if first.reached_at in shared else shared[0]
    if first.reached_at in {address.ip for address in own}:
        assert first.reached_at is not None
        return first.reached_at
    if own:
        return own[0].ip
    raise LaunchError(
        f"host {first.host} has no address that other hosts can reach (found: "
        f"{', '.join(address.ip for address in first.addresses) or 'loopback only'})",
        hint="name the address where ranks meet with --master_addr",
    )
