"""How other programs talk to a running node.

- ``control``   the local control socket: server and client
"""
