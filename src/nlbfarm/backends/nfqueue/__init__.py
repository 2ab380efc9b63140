"""The NFQUEUE backend: new flows are decided in user space, what was decided stays in the kernel.

- ``backend``   what the node talks to; its table, lease and watch are those of the nftables backend
- ``render``    the packet path as an nft script (pure); ``marks``, the numbers that it goes by
- ``queueing``  how this kernel can queue a packet: nft's ``queue``, or the target NFQUEUE
- ``table``     the tables in the kernel
- ``verdicts``  what is answered to a queued packet (pure)
- ``worker``    a process that answers; ``team``, the node's end of all of them
- ``board``     the memory that they share

Nothing here imports the package ``netfilterqueue`` but the worker.
"""

from nlbfarm.backends.nfqueue.backend import NfqueueBackend

__all__ = ["NfqueueBackend"]
