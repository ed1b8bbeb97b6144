"""`flux-endpoint service NOUN VERB`: administration of a service, on its database."""
