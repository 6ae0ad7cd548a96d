"""Triggers: wait in the triggerer, so that a waiting task holds no worker slot."""
