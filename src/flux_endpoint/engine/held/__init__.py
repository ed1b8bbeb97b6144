"""Allocations that are held for several short MPI tasks of one shape."""
