"""`FuncXClient`."""

from flux_endpoint.client import Client


class FuncXClient(Client):
    """`Client`, by its name in funcX."""
