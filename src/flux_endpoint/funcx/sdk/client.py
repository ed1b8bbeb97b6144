"""`FuncXClient`."""

from flux_endpoint.client import Client


class FuncXClient(Client):
    """`Client` under its name in funcX."""
