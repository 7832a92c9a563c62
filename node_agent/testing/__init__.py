"""A swarm on this machine, for tests and for people who build on Learning@home."""

from node_agent.testing.local_swarm import LocalSwarm

__all__ = ["LocalSwarm"]
