"""The REST service: its store, its routing between queues, and its users.

`app.create_app` makes the ASGI application, and `server.run` serves it. Needs the extra `service`.
"""
