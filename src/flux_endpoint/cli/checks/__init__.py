"""What `flux-endpoint doctor` looks at: each module one part of what can be wrong."""
