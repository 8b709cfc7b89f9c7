"""Finds the address at which the other nodes of a Slurm job reach this one.

A node's own name does not suffice: on Debian it resolves to 127.0.1.1, and Slurm's name of a node may not resolve at
all. Slurm's controller knows an address of each node, and the kernel knows routes.
"""

import socket
from collections.abc import Sequence
from ipaddress import ip_address

from moe_cluster.errors import ClusterError
from moe_cluster.linux import family_of
from moe_cluster.slurm.client import FIELD, call

MOST_ASKED = 4
"""The number of nodes whose addresses are looked up: this one, and some to which there may be a route."""
DISCARD_PORT = 9


def address_in_job(nodes: Sequence[str]) -> str:
    """Returns the address of this node, the first of `nodes`, at which the others reach it; loopback if it is alone.

    Raises ClusterError if Slurm does not answer, or if other nodes cannot reach this one.
    """
    addresses = _node_addresses(nodes[:MOST_ASKED])
    own, *others = (addresses.get(node, node) for node in nodes[:MOST_ASKED])
    return own_address(own, others)


def own_address(own: str, others: Sequence[str]) -> str:
    """Returns the same as `address_in_job`, for addresses or names of this node and of others."""
    if address := next(filter(_is_reachable, resolved(own)), ""):
        return address
    if not others:
        return next(iter(resolved(own)), "127.0.0.1")
    for remote in (remote for other in others for remote in resolved(other)):
        if (address := towards(remote)) and _is_reachable(address):
            return address
    raise ClusterError(
        f"other nodes cannot reach this one: {_shown(own)}, and there is no route from here to "
        f"{', '.join(map(_shown, others))}; correct NodeAddr in slurm.conf, or /etc/hosts on the nodes"
    )


def resolved(name: str) -> list[str]:
    """Returns the addresses of a name, IPv4 first; none if it does not resolve."""
    try:
        families = {
            str(entry[4][0]): entry[0] for entry in socket.getaddrinfo(name, 0, type=socket.SOCK_DGRAM)
        }
    except OSError:
        return []
    return sorted(families, key=lambda address: families[address] != socket.AF_INET)


def towards(address: str) -> str:
    """Returns this host's own address on the route to another one; empty without a route. Sends nothing."""
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, DISCARD_PORT))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def with_port(address: str, port: int) -> str:
    """Returns ADDRESS:PORT, with the brackets that IPv6 needs."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _node_addresses(nodes: Sequence[str]) -> dict[str, str]:
    """Returns the NodeAddr of each node, an address or a name."""
    lines = call("scontrol", "--oneliner", "show", "node", ",".join(nodes)).splitlines()
    records = [dict(FIELD.findall(line)) for line in lines]
    return {record["NodeName"]: record["NodeAddr"] for record in records if record.get("NodeAddr")}


def _is_reachable(address: str) -> bool:
    parsed = ip_address(address)
    return not (parsed.is_loopback or parsed.is_unspecified or parsed.is_link_local)


def _shown(name: str) -> str:
    addresses = [address for address in resolved(name) if address != name]
    return f"{name} resolves to {', '.join(addresses)}" if addresses else name
