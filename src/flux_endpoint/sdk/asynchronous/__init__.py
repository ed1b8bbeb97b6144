"""Modules where the official SDK has them."""
