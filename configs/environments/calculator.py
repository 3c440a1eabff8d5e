"""A tool of the run file quickstart_tools.yaml: every public function of this file may be called by the policy."""

from __future__ import annotations

import ast
import operator

_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def calculator(expression: str) -> str:
    """Compute an expression of whole numbers with +, - and *."""
    if len(expression) > 100:
        raise ValueError("the expression has more than 100 characters")
    return str(_value(ast.parse(expression.strip(), mode="eval").body))


def _value(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return int(_OPERATIONS[type(op)](_value(left), _value(right)))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner)
    raise ValueError(f"{ast.unparse(node)} is no sum, difference or product of whole numbers")
