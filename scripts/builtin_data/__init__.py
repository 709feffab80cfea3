"""The grammars that generate the built-in tasks: the same rows on every machine, no download."""
