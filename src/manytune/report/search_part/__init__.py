"""The part of a report that shows a search: trials and what they took, from their records alone."""
