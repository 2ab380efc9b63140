"""How this kernel queues a packet for a process: nft's ``queue``, or the target NFQUEUE of iptables.

Distribution kernels have nft's ``queue`` (CONFIG_NFT_QUEUE). Where it is missing there is the target, which
nf_tables can call, too (CONFIG_NFT_COMPAT; it is what ``iptables-nft`` does). So it stands in tables of our
own, directly behind conntrack, and neither the program iptables nor any chain of its is touched: a packet
that comes back from a queue goes on with the next *hook*, and every rule behind ours in a chain of iptables'
would miss it.

libnftables has no words for a target, so that one rule is said in netlink's. Neither way bypasses a queue
that nobody listens to: no such flag is given.

Source: ``linux/netfilter/xt_NFQUEUE.h`` (revision 1), ``net/netfilter/nft_compat.c``, ``nf_tables.h``.
"""

from __future__ import annotations

import struct

from nlbfarm.backends.netlink import NetlinkError, NetlinkTables, attribute
from nlbfarm.nft import Nft, NftError

__all__ = ["MISSING", "has_statement", "has_target", "target_rule"]

MISSING = (
    "this kernel can queue no packets for a process: it needs nft's queue statement (CONFIG_NFT_QUEUE), or "
    "the target NFQUEUE (CONFIG_NETFILTER_XT_TARGET_NFQUEUE and CONFIG_NFT_COMPAT); install the kernel's "
    "modules and load one (modprobe -a nft_queue nfnetlink_queue)"
)
"""What to tell an administrator whose kernel has neither."""

_NFPROTO_IPV4 = 2
_TABLE, _CHAIN = "nlbfarm/probe", "c"

_NESTED = 0x8000
_REVISION = 1
_INFO = struct.Struct("=HHI")  # struct xt_NFQ_info_v1, padded to eight bytes

_STATEMENT = """table inet nlbfarm/probe {
chain c {
 type filter hook prerouting priority 0;
 queue to 1
 }
}
"""


def has_statement(nft: Nft) -> bool:
    """Whether the kernel has nft's ``queue``; changes nothing."""
    try:
        nft.check(_STATEMENT)
    except NftError:
        return False
    return True


def has_target() -> bool:
    """Whether the kernel has the target NFQUEUE and lets nf_tables call it; changes nothing.

    Raises:
        HostError: The kernel did not answer.
    """
    tables = NetlinkTables()
    try:
        tables.check_rule(_NFPROTO_IPV4, _TABLE, _CHAIN, target_rule(_TABLE, _CHAIN, 1, 1))
    except NetlinkError:
        return False
    finally:
        tables.close()
    return True


def target_rule(table: str, chain: str, first: int, queues: int) -> bytes:
    """Return the attributes of a rule that queues every packet.

    Args:
        table, chain: Where it shall stand.
        first: Number of the first queue.
        queues: How many there are; the kernel spreads the pairs of addresses over them.
    """
    target = (
        _string(1, "NFQUEUE")  # NFTA_TARGET_NAME, _REV, _INFO
        + attribute(2, struct.pack("!I", _REVISION))
        + attribute(3, _INFO.pack(first, queues, 0))
    )
    expression = _string(1, "target") + attribute(2 | _NESTED, target)  # NFTA_EXPR_NAME, _DATA
    # NFTA_RULE_TABLE, _CHAIN, _EXPRESSIONS of NFTA_LIST_ELEM
    return _string(1, table) + _string(2, chain) + attribute(4 | _NESTED, attribute(1 | _NESTED, expression))


def _string(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")
