"""A worker: see ``nlbfarm.backends.nfqueue.worker``."""

import sys

from nlbfarm.backends.nfqueue.worker import main

sys.exit(main(sys.argv[1:]))
