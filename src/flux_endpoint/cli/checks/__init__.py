"""The checks of `flux-endpoint doctor`, one area per module."""
