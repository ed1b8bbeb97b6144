"""The REST routes, one module per kind of object."""
