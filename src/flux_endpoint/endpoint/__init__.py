"""The agent: tasks in, results out, the journal, its configuration and lifecycle."""
