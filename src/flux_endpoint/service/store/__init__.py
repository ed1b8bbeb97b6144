"""What the service keeps in its database: one module a noun, functions on a connection."""
