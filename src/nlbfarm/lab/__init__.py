"""A whole farm on one machine: real ``nlbfarm-node`` processes, real web servers, real packets.

``Lab`` is all that most users need; ``Probing`` is its client::

    with Lab(nodes=3, server="builtin") as lab:
        lab.start()
        lab.settle()
        with Probing(lab) as probing:
            killed = lab.crash("web2")
            lab.settle("web1", "web3")

Where things are:

- ``farm``: ``Lab``: boots, starts, stops, freezes, kills nodes; asks them; compares their hosts before
  and after
- ``probing``: ``Probing``: asks every bucket all the time, to see who serves it; ``prober`` is its process
- ``talking``: ``Talking``: holds connections that keep talking, to see whether one breaks; ``talker`` is its
  process. ``client`` and ``endpoints`` are what the two have in common
- ``faults``: ``Faults``: loss, partitions and a gateway out of reach, at the switch
- ``application``: ``Application``: what befalls the web servers: they crash, hang, answer errors
- ``operator``: ``Operator``: the administrator, who drains and stops nodes and changes their powers
- ``configuration``, ``nodelog``: what the nodes read and write
- ``story``, ``acts``: what ``nlbfarm-node demo`` tells
- ``topology``: cables and addresses
- ``servers``: Apache, nginx and the built-in ``webserver``, with configurations of their own
- ``hoststate``: what a host looks like, to compare
- ``world``: the bundle of namespaces, as its owner sees it; ``supervisor`` is the process that holds it

How it stays clean: whoever makes a ``Lab`` (the demo, a test, a benchmark) stays an ordinary process of
the host. It starts one child, the supervisor, under ``unshare`` with network, mount and PID namespaces of
its own (and a user namespace, unless it is root), and asks it for everything through a socket pair. Node
namespaces, files and mounts exist only in there. The supervisor ends when the other end of the socket
closes, whatever ended the owner, ``SIGKILL`` included; it is PID 1 in there, so the kernel then kills the
rest and frees the namespaces and the tmpfs with all files. So a test is an ordinary test function with a
``Lab`` in a ``with`` statement, and needs no clean-up of its own. (A child that the owner forks without
exec would keep the socket open: do not use ``multiprocessing``'s fork start method beside a lab.)
"""

from __future__ import annotations

from nlbfarm.lab.application import Application
from nlbfarm.lab.farm import Lab
from nlbfarm.lab.faults import Faults
from nlbfarm.lab.operator import Operator
from nlbfarm.lab.probing import Double, Probing, Request, percentile
from nlbfarm.lab.servers import SERVERS
from nlbfarm.lab.talking import Broken, Fresh, Talking, Tally
from nlbfarm.lab.world import Done, LabError, missing

__all__ = [
    "SERVERS",
    "Application",
    "Broken",
    "Done",
    "Double",
    "Faults",
    "Fresh",
    "Lab",
    "LabError",
    "Operator",
    "Probing",
    "Request",
    "Talking",
    "Tally",
    "missing",
    "percentile",
]
