"""Tensor operations: no modules, no state, no toolkit."""
