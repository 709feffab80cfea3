"""Trained runs in use: predict, export, submit, push."""
