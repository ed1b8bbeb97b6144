"""Who may do what at the broker: accounts that RabbitMQ keeps apart, by asking this service.

Every token has an account of its own for its user, and one for each endpoint that it registers.
RabbitMQ knows none of them: for each login and each new use of a queue, exchange or routing key its
HTTP authorization backend asks `listener`, and `rules` says what is answered.
"""
