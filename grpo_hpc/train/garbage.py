"""When Python looks for garbage: between two steps, and never within one.

Every rank would stop for it at a time of its own, and at each collective the others would wait for it.
"""

from __future__ import annotations

import gc


class GarbageControl:
    """From here on nothing is collected but by :meth:`between_steps`; what is there already is never looked at again.

    Objects without cycles go as soon as nobody refers to them, as always.
    """

    def __init__(self) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()

    def between_steps(self) -> None:
        """Collect what has become garbage since the last call."""
        gc.collect()

    def close(self) -> None:
        """Let Python decide again."""
        gc.unfreeze()
        gc.enable()
