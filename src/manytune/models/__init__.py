"""Encoder families, the tensors of a model without their values, and loading."""
