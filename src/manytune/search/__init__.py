"""The search: how the settings of trials are drawn, which trials go on, and what is kept of it."""
