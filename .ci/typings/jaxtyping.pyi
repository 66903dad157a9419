"""What the type check takes the annotations of arrays for: any value.

Kinds and shapes of arrays are checked while the tests run, by jaxtyping and beartype (see tests/conftest.py), where
they are known. The names of axes in them are taken for strings here, as in jaxtyping's own types.
"""

from typing import Annotated as Bool
from typing import Annotated as Float
from typing import Annotated as Int
from typing import Annotated as Num
from typing import Annotated as Shaped
from typing import Annotated as UInt8
from typing import Any

__all__ = ["Array", "Bool", "Float", "Int", "Num", "PRNGKeyArray", "PyTree", "Shaped", "UInt8"]

Array = Any
PRNGKeyArray = Any
PyTree = Any
