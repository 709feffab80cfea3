"""Statistics over seeds and over dev examples, from means to verdicts."""
