"""Aliases with the module names of the official SDK."""
