"""Multi-user endpoints: each starts user endpoints on command, as its users' local accounts.

A multi-user endpoint runs no tasks. The service commands it to start a user endpoint for each user
and each `user_endpoint_config` that has tasks (`commands`). It maps the user to a local account
(`mapping`), and starts a process as that account (`accounts`, `process`). That process renders the
template with the user's values (`template`), and runs an ordinary agent (`user_endpoint`).
"""
