"""Modules where the official SDK has them: its scripts run with the package's name changed.

`globus_compute_sdk.sdk.executor` is `flux_endpoint.sdk.executor`, and so on; `errors` and
`serialize` are at the top of the package there as here. Everything is that of
`flux_endpoint.client` and `flux_endpoint.functions`.
"""
