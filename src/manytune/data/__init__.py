"""Tasks, their rows, metrics and encoding."""
