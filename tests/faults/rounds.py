"""How long the tests of faults go on: the quick round, or all of what is promised (`LAH_FAULTS=full`)."""

import os

FULL = os.environ.get("LAH_FAULTS") == "full"
LIMIT_S = 3_600 if FULL else 60
