"""What endpoints of another make need of the service: those of the official package.

A *multi-user endpoint* registers, and starts *user endpoints* on command: one for each user and
each configuration. These hold the tasks that they take in memory only, and acknowledge them at
once. So each is given a window of tasks at a time, its runs are followed by their reports, and what
a vanished run had taken ends in a failure that says so. All of it happens on one thread, the
`dispatcher`'s.
"""
