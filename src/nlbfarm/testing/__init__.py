"""Fakes and conformance checks, for tests of nlbfarm and of what a vendor plugs into it.

- ``clock``           ``FakeClock``: time that passes when the test says so
- ``filter_backend``  ``check_filter_backend_contract``: what every ``FilterBackend`` must keep
- ``farm``            a whole farm of cores in simulated time, with a network that loses and delays
- ``heartbeat``       the conformance check for ``Heartbeat``
- ``vip``             the conformance check for ``VIPManager``

The checks raise ``AssertionError`` with a sentence on what was promised and what was seen; they need no test
framework. The product never imports this package.
"""
