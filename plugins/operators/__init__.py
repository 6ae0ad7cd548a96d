"""Operators for DAG files: ``from plugins.operators import RuleEngineOperator``."""

from plugins.operators.rule_engine_operator import RuleEngineOperator

__all__ = ["RuleEngineOperator"]
