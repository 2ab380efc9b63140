"""Applications on the hosts of a simulated farm, and the real ``Supervision`` that looks after them.

- ``model``       what is supervised, and how it behaves: plain data, a part of a schedule
- ``host``        what is on one host: services that run, checked things that are down, what is persisted
- ``shell``       one process: the state machine, and a shell that does what the real one does
- ``ledger``      what a machine was told and has asked for, kept beside it, so that it can be judged
- ``invariants``  what must hold: A1 to A7
- ``actions``     what can happen to applications
- ``chance``      the family ``applications`` of random schedules
- ``breaks``      rules of the supervision that can be disabled
"""
