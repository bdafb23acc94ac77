"""The types and ranges that constructors state for their arguments, and what enforces them."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, validate_call

#: Decorates a constructor: a value of another type or out of range raises pydantic's
#: ValidationError, which names the argument. Strict: 4.5 and "4" are no integers.
checked = validate_call(config=ConfigDict(strict=True, arbitrary_types_allowed=True))

Size = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1)]
#: When there is a target, and a prediction, at every step of a sequence and not only at its end.
EveryStep = Literal["never", "training", "always"]
