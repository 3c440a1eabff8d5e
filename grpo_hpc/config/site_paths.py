"""Paths with ``~`` and variables of the site, such as ``$WORK/runs``.

What lies on a shared file system is known where a run is planned and submitted, and :func:`expanded` there. What only a
node knows, such as ``$SLURM_TMPDIR``, becomes a word of bash that the node expands (:func:`node_word`).
"""

from __future__ import annotations

import os
import re
from shlex import quote
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from grpo_hpc.errors import ConfigError
from grpo_hpc.files import with_home

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_VARIABLE = re.compile(rf"\$(?:\{{({_NAME})\}}|({_NAME}))")
_EVALUATED = re.compile(r"[$][({]")
_NODE = re.compile(rf"\\\$|\$(?:\{{(?P<braced>{_NAME})\}}|(?P<plain>{_NAME}))|(?:^|(?<=:))(?P<home>~)(?=[/:]|$)")


def expanded(path: str) -> str:
    """``path`` with ``~`` and the variables of this shell put in.

    Raises:
        PydanticCustomError: a variable is not set here, or a command or an expression stands in it.
    """
    if found := _EVALUATED.search(_VARIABLE.sub("", path)):
        raise PydanticCustomError(
            "form",
            "may name variables, as in $NAME; '{found}' begins a command or an expression, and none is run",
            {"found": found[0]},
        )
    for braced, plain in _VARIABLE.findall(path):
        if not os.environ.get(braced or plain):
            raise PydanticCustomError(
                "unset",
                "names the variable {name}, which is not set here; set it where you plan and submit, or write the path",
                {"name": braced or plain},
            )
    whole = _VARIABLE.sub(lambda found: os.environ[found[1] or found[2]], path)
    try:
        return str(with_home(whole)) if whole.startswith("~") else whole
    except ConfigError as error:
        raise PydanticCustomError("home", "is {message}", {"message": error.message}) from None


SitePath = Annotated[str, AfterValidator(expanded)]


def known_to_nodes(text: str) -> str:
    """``text`` as it is, when bash on a node can expand all of it.

    Raises:
        PydanticCustomError: a command or an expression stands in it.
    """
    if found := _EVALUATED.search(_NODE.sub("", text)):
        raise PydanticCustomError(
            "form",
            "may name variables, as in $NAME; '{found}' begins a command or an expression, and none is run "
            "(a dollar sign itself is written \\$)",
            {"found": found[0]},
        )
    return text


NodeText = Annotated[str, AfterValidator(known_to_nodes)]


def node_word(text: str, unset: str | None = None) -> str:
    """One word of bash that is ``text`` with its variables, and ``~`` where a path begins, as the node has them.

    Args:
        unset: said by bash, which then ends, when a variable is not set; absent: it is empty text.
    """
    instead = "-" if unset is None else f":?{unset}"
    word, at = "", 0
    for found in _NODE.finditer(text):
        word += _literal(text[at : found.start()]) + _expansion(found, instead)
        at = found.end()
    return word + _literal(text[at:]) or "''"


def _expansion(found: re.Match[str], instead: str) -> str:
    if found[0] == r"\$":
        return "'$'"
    name = "HOME" if found["home"] else found["braced"] or found["plain"]
    return f'"${{{name}{instead}}}"'


def _literal(text: str) -> str:
    return quote(text) if text else ""
