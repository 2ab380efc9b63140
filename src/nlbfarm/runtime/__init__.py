"""The asyncio shell around one node: events in, commands out.

- ``shell``           ``Runtime``: the loop, what comes in and goes out, life and death of a node
- ``filtering``       the packet filter: changes, damage, repair, the question for connections left
- ``vips``            the virtual IPs: brought up, kept, taken away
- ``checking``        the checkers
- ``administration``  what the administrator wants: carried out, remembered; damping
- ``dialect``         what an earlier wire version says otherwise
- ``remote``          commands for other nodes, and from them

``Runtime`` is built from finished ``nlbfarm.parts``, so that a vendor can put its own in; ``run_node`` in
``nlbfarm.assembly`` builds them from a configuration.
"""

from nlbfarm.runtime.administration import Administration, Verb
from nlbfarm.runtime.shell import Runtime

__all__ = ["Administration", "Runtime", "Verb"]
