"""Fakes and conformance checks, for tests of nlbfarm and of what a vendor plugs into it.

- ``clock``           ``FakeClock``: time that passes when the test says so
- ``filter_backend``  ``check_filter_backend_contract``: what every ``FilterBackend`` must keep
- ``conformance``     ``check_filter_backend``: thousands of packets, every verdict beside the oracle's
- ``farm``            a whole farm of cores in simulated time: ``timeline``, ``world``, ``hosts``,
                      ``network``, ``clients``; and ``applications`` that their supervision looks after
- ``invariants``      what must hold in it at every step
- ``schedules``       what happens to it, as data, by the names in ``actions``; made by ``chance`` (with an
                      ``agenda``), run in numbers by ``batch``, made small by ``shrink``
- ``breaks``          rules of the protocol that can be disabled, to see that it is noticed
- ``simulate``        the command: ``python -m nlbfarm.testing.simulate``
- ``heartbeat``       the conformance check for ``Heartbeat``
- ``vip``             the conformance check for ``VIPManager``

The checks raise ``AssertionError`` with a sentence on what was promised and what was seen; they need no test
framework. The product never imports this package.
"""
