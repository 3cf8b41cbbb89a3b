from intandem.planner.found import Found, Progress
from intandem.planner.searching import search

__all__ = ["Found", "Progress", "search"]
