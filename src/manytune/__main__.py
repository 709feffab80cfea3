"""`python -m manytune`: the command line."""

from __future__ import annotations

from manytune.cli import main

if __name__ == "__main__":
    main()
