"""Serving by hand: a filter of the test's own stands in for the farm's, so the right answers are known."""

from __future__ import annotations

from nlbfarm.lab import Lab, topology

SEED = 0x1234
RULE = f"jhash ip saddr . tcp sport mod 256 seed {SEED}"
GROUP_MAC = "01:00:5e:7f:02:64"


def serve_by_hand(lab: Lab, node: str, buckets: str) -> None:
    """Bring the VIP up on a node with a filter that accepts ``buckets`` (an nft set)."""
    vip = topology.VIP
    ruleset = f"""
table inet hand {{
  chain raw {{ type filter hook prerouting priority raw
    iifname eth0 ip daddr {vip} tcp dport 80 jump dispatch
  }}
  chain dispatch {{
    meta mark set {RULE}
    meta mark != {buckets} drop
    meta mark set 0 meta pkttype set host
  }}
}}
table arp hand {{
  chain out {{ type filter hook output priority 0
    arp saddr ip {vip} arp saddr ether set {GROUP_MAC}
  }}
}}
"""
    lab.world.run(["nft", "-f", "-"], ns=node, stdin=ruleset)
    lab.exec(node, ["sysctl", "-qw", "net.ipv4.conf.eth0.arp_announce=2"])
    lab.exec(node, ["ip", "maddress", "add", GROUP_MAC, "dev", "eth0"])
    lab.exec(node, ["ip", "address", "add", f"{vip}/32", "dev", "eth0"])


def first(lab: Lab, node: str, rule: str) -> None:
    """Put a rule in front of a node's filter."""
    lab.world.run(["nft", "-f", "-"], ns=node, stdin=f"insert rule inet hand dispatch {rule}\n")


def replace(lab: Lab, node: str, buckets: str) -> None:
    """Let a node's filter accept other buckets, in one transaction."""
    chain = "rule inet hand dispatch"
    text = f"""
flush chain inet hand dispatch
add {chain} meta mark set {RULE}
add {chain} meta mark != {buckets} drop
add {chain} meta mark set 0 meta pkttype set host
"""
    lab.world.run(["nft", "-f", "-"], ns=node, stdin=text)
