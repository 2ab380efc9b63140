"""The process between a node and an application that it started as a command, and the node's side of it.

The keeper is the application's parent: it reads its output, sees its end, and ends everything of it when it
is told to, or when its node is gone. A node that is replaced says so first; the next one finds the keeper by
its socket, with the application running.

- ``boot``       starts it without the rest of nlbfarm: it is small, and there at once
- ``process``    what it does
- ``nodes``      its connections: the node's, and those from which the next node comes
- ``waiting``    what it waits for
- ``launching``  fork, and what the child does before it becomes the application
- ``family``     whose processes are the application's, and their end
- ``cgroup``     a cgroup of the application's own, where one can be made
- ``output``     what the application prints, bounded
- ``talk``       messages, and the socket's address
- ``link``       the node's side: start one, find one, talk to it

All but ``link`` run in the keeper and import nothing but a little of the standard library, all of it at the
start: an upgrade replaces the files under a running keeper.
"""
