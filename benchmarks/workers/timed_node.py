"""`lah node`, which says when torch was imported: what comes after is ours."""

import sys
import time

import torch  # noqa: F401 - the import is what is left out of the figure

if __name__ == "__main__":
    print(time.monotonic(), flush=True)  # one clock for all processes of a machine
    from node_agent.cli import main

    sys.exit(main(sys.argv[1:]))
