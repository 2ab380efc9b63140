"""The configuration of a farm: one TOML file, the same on every node, and a key file.

- ``types``       domain types: durations, ports, names, addresses
- ``farm``, ``heartbeat``, ``handoff``, ``filter``, ``nodes``, ``vips``, ``rules``, ``services``,
  ``checkers``, ``failover_rules``, ``events``, ``notify``, ``log``, ``control``: one model for each table;
  ``checker_types``, ``checker_types_network``, ``checker_types_host``: one for each type of checker
- ``plugged``     names of plug-ins
- ``root``        ``FarmConfig``: all tables, right in themselves and together
- ``draft``       reading tables one by one, so that all errors are found at once
- ``crosscheck``  what has to fit together between tables; ``supervised``: services, checkers and rules
- ``loading``     file -> ``FarmConfig``, or every problem with its path; ``lines``: where it is
- ``keys``        the key file
- ``digest``      what nodes compare to know that they agree
- ``changes``     what a running node can take over of another configuration
- ``schema``      a JSON Schema of all of it, for editors
- ``host``        what the configuration expects of this host
- ``derive``      configuration -> values for the core and the adapters
"""

from nlbfarm.config.digest import config_digest, dump, secret_digest
from nlbfarm.config.keys import FarmKeys
from nlbfarm.config.loading import load
from nlbfarm.config.root import FarmConfig

__all__ = ["FarmConfig", "FarmKeys", "config_digest", "dump", "load", "secret_digest"]
