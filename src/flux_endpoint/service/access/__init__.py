"""Access control for the broker: RabbitMQ uses this service to authorize accounts.

Each token has one account for its user, and one for each endpoint that it has registered. RabbitMQ
does not store these accounts. For each login, and for each new use of a queue, exchange or routing
key, its HTTP authorization backend sends a request to `listener`, and `rules` has the answer.
"""
