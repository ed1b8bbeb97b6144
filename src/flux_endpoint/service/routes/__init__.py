"""The REST routes, one module a noun."""
