"""nlbfarm: a farm of ordinary servers behind one virtual IP, without a load balancer in the middle.

The public names:

- the things to plug in: ``FilterBackend``, ``Heartbeat``, ``Checker``, ``VIPManager``, ``Service``, ``Clock``
  (``nlbfarm.interfaces``; their conformance checks are in ``nlbfarm.testing``);
- what a configuration is: ``nlbfarm.config``;
- the pure core: ``nlbfarm.core``;
- a running node: ``nlbfarm.runtime.Runtime``, built from a configuration by ``nlbfarm.assembly``;
- the errors: ``nlbfarm.errors``.
"""

from nlbfarm.errors import (
    AddressInUseError,
    ConfigError,
    HostError,
    NlbfarmError,
    PeerError,
    PluginError,
    UsageError,
)
from nlbfarm.interfaces import (
    Checker,
    CheckResult,
    Clock,
    FilterBackend,
    Heartbeat,
    Service,
    Usability,
    VIPManager,
)

__version__ = "0.1.0"

__all__ = [
    "AddressInUseError",
    "CheckResult",
    "Checker",
    "Clock",
    "ConfigError",
    "FilterBackend",
    "Heartbeat",
    "HostError",
    "NlbfarmError",
    "PeerError",
    "PluginError",
    "Service",
    "Usability",
    "UsageError",
    "VIPManager",
    "__version__",
]
