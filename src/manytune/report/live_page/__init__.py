"""A page that shows a study while it runs."""

from manytune.report.live_page.server import serve

__all__ = ["serve"]
