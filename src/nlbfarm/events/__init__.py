"""What happens on a node, told to whoever wants to know: in the process, on the control socket, on disk.

- ``model``      ``NodeEvent``: one thing that happened, and its form in JSON
- ``sentences``  every name of an event, as a sentence for a person, and how severe it is
- ``stream``     ``EventStream``: publishes to any number of readers, and waits for none
- ``log``        ``EventLog``: writes to the log and publishes, in one call
- ``journal``    ``Journal``: keeps events on disk; ``reading``: reads them back
- ``answering``  what a node answers to ``nlbfarm-node events``
"""

from nlbfarm.events.answering import answer_events
from nlbfarm.events.journal import Journal
from nlbfarm.events.log import EventLog
from nlbfarm.events.model import NodeEvent, Severity
from nlbfarm.events.reading import read
from nlbfarm.events.sentences import sentence
from nlbfarm.events.stream import EventStream, Subscription

__all__ = [
    "EventLog",
    "EventStream",
    "Journal",
    "NodeEvent",
    "Severity",
    "Subscription",
    "answer_events",
    "read",
    "sentence",
]
