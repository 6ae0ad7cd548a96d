"""The reference TransformationService: rules over records in PostgreSQL, each record once per slot."""

__version__ = "1.0.0"
