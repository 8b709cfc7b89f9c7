"""At which address the other nodes of a Slurm job find this one, and ports there.

A node's own name is no answer by itself: on Debian it stands for 127.0.1.1, and Slurm's name of a node need not be a
name of the network at all. Slurm's controller knows an address of each node, and the kernel knows ways.
"""

import socket
from collections.abc import Sequence
from ipaddress import ip_address

from moe_cluster.errors import ClusterError
from moe_cluster.slurm.client import FIELD, call

MOST_ASKED = 4
"""Nodes of a job whose addresses are asked for: this one, and some to which there may be a way."""
DISCARD_PORT = 9


def address_in_job(nodes: Sequence[str]) -> str:
    """The address of this node, the first of `nodes`, at which the others find it; the only one may be anywhere.

    Raises ClusterError if Slurm does not answer, or if other nodes could not find this one.
    """
    known = _known_to_slurm(nodes[:MOST_ASKED])
    own, *others = (known.get(node, node) for node in nodes[:MOST_ASKED])
    return own_address(own, others)


def own_address(own: str, others: Sequence[str]) -> str:
    """As `address_in_job`, of addresses or names of this node and of others."""
    if found := next(filter(_is_seen_from_afar, resolved(own)), ""):
        return found
    if not others:
        return next(iter(resolved(own)), "127.0.0.1")
    for address in (address for other in others for address in resolved(other)):
        if (found := towards(address)) and _is_seen_from_afar(found):
            return found
    raise ClusterError(
        f"no address of this node is known at which other nodes find it: {_shown(own)}, and there is no way from here "
        f"to {', '.join(map(_shown, others))}; correct NodeAddr in slurm.conf, or /etc/hosts on the nodes"
    )


def resolved(name: str) -> list[str]:
    """The addresses that a name stands for, IPv4 first; none if it is not known."""
    try:
        found = {str(entry[4][0]): entry[0] for entry in socket.getaddrinfo(name, 0, type=socket.SOCK_DGRAM)}
    except OSError:
        return []
    return sorted(found, key=lambda address: found[address] != socket.AF_INET)


def towards(address: str) -> str:
    """The address of this host on the way to another one; empty if there is no way. Nothing is sent."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, DISCARD_PORT))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def with_port(address: str, port: int) -> str:
    """ADDRESS:PORT, with the brackets that IPv6 needs."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _known_to_slurm(nodes: Sequence[str]) -> dict[str, str]:
    """Node -> its NodeAddr, an address or a name of the network."""
    lines = call("scontrol", "--oneliner", "show", "node", ",".join(nodes)).splitlines()
    records = [dict(FIELD.findall(line)) for line in lines]
    return {record["NodeName"]: record["NodeAddr"] for record in records if record.get("NodeAddr")}


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _is_seen_from_afar(address: str) -> bool:
    found = ip_address(address)
    return not (found.is_loopback or found.is_unspecified or found.is_link_local)


def _shown(name: str) -> str:
    addresses = [address for address in resolved(name) if address != name]
    return f"{name} stands for {', '.join(addresses)}" if addresses else name
