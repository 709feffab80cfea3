"""A page that shows a study while it runs."""

from manytune.watch.server import serve

__all__ = ["serve"]
