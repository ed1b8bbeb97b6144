"""This project's engine inside of other projects' programs."""
