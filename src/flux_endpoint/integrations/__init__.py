"""This project's engine in other projects' programs."""
