"""The REST service: store, routing between queues, identity.

`app.create_app` is the ASGI application, `server.run` serves it. Needs the extra `service`.
"""
