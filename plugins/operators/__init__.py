"""Operators for DAG files: ``from plugins.operators import RuleEngineOperator``."""

from plugins.operators.rule_engine_operator import RuleEngineOperator
from plugins.operators.script_operators import DynamicScriptOperator, StaticScriptOperator
from plugins.operators.transformation_service import TransformationServiceOperator

__all__ = ["DynamicScriptOperator", "RuleEngineOperator", "StaticScriptOperator", "TransformationServiceOperator"]
