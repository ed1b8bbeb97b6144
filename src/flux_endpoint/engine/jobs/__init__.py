"""Tasks that are jobs of their own: planned, submitted, followed, and turned into results."""
