"""How heartbeats travel: bytes out, bytes in; nothing here knows what they say.

- ``udp``       UDP to every peer on every heartbeat network
- ``link``      one network's socket: kernel receive times, DSCP, ICMP errors
- ``reader``    reads the sockets in a thread where the event loop cannot watch them
- ``realtime``  real-time priority and locked memory, so that a busy host is not a lost node
- ``memory``    a network in the process, for tests: loses, doubles, delays, cuts
"""
