"""Pruning of one given model: any pytree of parameters."""
