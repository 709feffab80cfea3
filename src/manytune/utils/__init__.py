"""What every other package uses: texts, files, errors, signals, the machine."""
