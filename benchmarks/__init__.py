"""Measurements on real processes: ``python -m benchmarks NAME [--json FILE]``.

- ``idle``: what one node of an idle farm costs
"""
