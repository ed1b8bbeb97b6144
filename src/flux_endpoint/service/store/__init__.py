"""The service's database: one module per kind of record, with functions on a connection."""
