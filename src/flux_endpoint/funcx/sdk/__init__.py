"""Modules where funcX has them."""
