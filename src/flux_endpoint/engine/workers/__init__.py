"""Resident workers: the pool in the agent, a manager on each node, and the workers it forks."""
