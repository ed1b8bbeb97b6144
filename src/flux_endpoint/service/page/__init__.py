"""The live web page at `/`: what runs, what waits and what failed, for a user of the service.

`routes.page` has its routes, `static/` its files. It only reads, with the rights of the user.
"""
