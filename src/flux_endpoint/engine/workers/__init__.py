"""Resident workers: the pool in the agent, a manager on each node, the workers it forks."""
