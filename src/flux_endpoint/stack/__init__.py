"""The whole stack on one machine: broker, service and endpoint as one process tree."""
