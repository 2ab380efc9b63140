"""Tells people of events: by mail, webhook, chat (through apprise) or a script of their own.

- ``message``   ``Message``: several events as one message; ``Target``: whom it goes to
- ``batching``  which events are worth a message, and when it is due
- ``targets``   a target by its URL, through apprise; what of a URL may be shown
- ``script``    a target that is a program
- ``courier``   one thread for each target: retries, and holds up nobody
- ``notifier``  ``Notifier``: from a node's events to the couriers
"""

from nlbfarm.notify.message import DeliveryError, Message, Target
from nlbfarm.notify.notifier import Notifier

__all__ = ["DeliveryError", "Message", "Notifier", "Target"]
