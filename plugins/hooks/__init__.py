"""Hooks: own a connection and everything that can go wrong on it."""
