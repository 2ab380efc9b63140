"""A bucket function of one's own: clients of one tenant stay together on one server.

A provider gives each tenant an IPv4 network of 8 addresses. With the hash rule, affinity ``network`` would
keep 256 addresses together, too many, and ``client`` one, too few. This function keeps a tenant's together.

Installed as a module on every node (here it is called ``bucket_function``), it goes into the configuration,
the same on every node, with a backend that judges packets in a process of its own::

    [filter]
    backend = "nfqueue"
    bucket_function = "bucket_function:by_tenant"

What it has to be:

- pure: the same answer for the same packet on every node, at every time, in every process. No clock, no
  file, no random number, no ``hash()`` of text (it differs from process to process);
- blind to what differs within one flow: nothing but addresses, protocol and ports, because what was decided
  of one packet holds for all of its flow;
- quick: it is called once for each new flow, and the flows behind it wait;
- even: the buckets, 0 to 255, are what a farm shares out, so each should get about as many clients;
- hard to aim at: with the group's secret seed in the hash, nobody can choose addresses that all fall on one
  server. An exception, or anything but 0..255, drops the packet, and is counted as ``malformed``.

Run it: ``python examples/bucket_function.py``
"""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address

from nlbfarm.core.decision import PacketFacts
from nlbfarm.core.hashing import bucket_of
from nlbfarm.core.policy import FilterPolicy, Group, Protocol, Rule, Vip

TENANT_BITS = 3
"""A tenant has 2 ** 3 addresses."""


def by_tenant(packet: PacketFacts, rule: Rule, group: Group) -> int:
    """Return the bucket of the tenant that a packet comes from.

    Args:
        packet: What is known of the packet. An ICMP echo request comes here, too: without ports.
        rule: The rule that covers it.
        group: The group that places it; its ``seed`` is secret and the same on every node.
    """
    tenant = int(packet.source) >> TENANT_BITS << TENANT_BITS
    return bucket_of(tenant.to_bytes(len(packet.source.packed), "big"), group.seed)


def main() -> None:
    """Show where some clients go."""
    vip = IPv4Address("192.0.2.100")
    policy = FilterPolicy(
        "example",
        (Vip(vip, "eth0"),),
        (Group("web", seed=0x5EED),),
        (Rule("web", "web", vip, Protocol.TCP, (443,)),),
    )
    (rule,), (group,) = policy.rules, policy.groups
    buckets: Counter[int] = Counter()
    for tenant in range(32):
        first = int(IPv4Address("198.51.100.0")) + (tenant << TENANT_BITS)
        of_tenant = {
            by_tenant(PacketFacts("eth0", IPv4Address(first + host), vip, 6, port, 443), rule, group)
            for host in range(1 << TENANT_BITS)
            for port in (1024, 50_000)
        }
        assert len(of_tenant) == 1, "a tenant's clients stay together"
        buckets[of_tenant.pop()] += 1
    print(f"32 tenants are in {len(buckets)} buckets, at most {max(buckets.values())} in one")


if __name__ == "__main__":
    main()
