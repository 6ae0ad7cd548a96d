"""Operators, hooks and triggers of this product; part of every release and imported from its root."""
