"""Builds a node from a configuration and runs it: what ``nlbfarm-node run`` does.

- ``building``   ``build``: from a configuration to a ``Runtime``
- ``process``    ``run_node``: a node as a process: signals, systemd, its end
- ``verbs``      what the control socket answers
- ``reloading``  another configuration, while the node runs

A program that embeds nlbfarm calls ``run_node``, or builds ``Parts`` of its own for a ``Runtime``.
"""

from nlbfarm.assembly.building import build, vip_manager
from nlbfarm.assembly.process import Ended, run_node
from nlbfarm.assembly.reloading import Reloader

__all__ = ["Ended", "Reloader", "build", "run_node", "vip_manager"]
