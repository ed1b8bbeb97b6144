"""Tasks that become jobs of their own: planned, submitted, followed and collected."""
