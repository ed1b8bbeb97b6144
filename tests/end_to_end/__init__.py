"""Tests of a whole stack, which they share."""
