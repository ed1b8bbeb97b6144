"""Aliases with the module names of funcX."""
