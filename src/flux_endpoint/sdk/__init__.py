"""Aliases with the module names of the official SDK.

Scripts for the official SDK run if they import `flux_endpoint` instead of `globus_compute_sdk`,
e.g. `flux_endpoint.sdk.executor` instead of `globus_compute_sdk.sdk.executor`. The modules `errors`
and `serialize` are at the top level in both packages. All classes come from `flux_endpoint.client`
and `flux_endpoint.functions`.
"""
