"""A config schema for Dagster that checks bounds before there is a run, which Dagster's own types do not.

Belongs here: what is done to Dagster's config types for that, as read in Dagster 1.13.27. Does not belong here: the
fields (`defs.run_configuration`).
"""

from collections.abc import Callable, Mapping
from typing import Any

from dagster import Array, Config, Field, Noneable, ScalarUnion, Shape

from scenario_pipeline.defs.dagster_private import PostProcessingError
from scenario_pipeline.errors import UserError


class _CheckedShape(Shape):
    """The fields of a configuration, with a check of their values.

    So a value out of bounds is refused when the run is launched, and not by the run's first step.
    """

    check_values: Callable[[Mapping[str, Any]], object]

    def __new__(cls, *_: Any, **__: Any) -> "_CheckedShape":
        # Not from Dagster's cache of shapes, which could return a plain one with equal fields.
        shape = object.__new__(cls)
        shape._initialized = False
        return shape

    def post_process(self, value: Mapping[str, Any]) -> Mapping[str, Any]:
        """Refuse with a sentence what cannot work; called once types are right and defaults are filled in."""
        try:
            self.check_values(value)
        except UserError as exc:
            sentence = str(exc)
        else:
            return value
        raise PostProcessingError(sentence)


def _literal(kind: Any) -> Any:
    """Return a config type without the form `{env: NAME}`: a refusal would quote what the variable holds."""
    match kind:
        case Noneable():
            return Noneable(_literal(kind.inner_type))
        case Array():
            return Array(_literal(kind.inner_type))
        case ScalarUnion():
            return kind.scalar_type
        case _:
            return kind


def checked_schema(configuration: type[Config], check: Callable[[Mapping[str, Any]], object]) -> Shape:
    """Return the config schema of `configuration`, whose values are refused if `check` raises a `UserError`."""
    shape = _CheckedShape(
        {
            name: Field(
                _literal(field.config_type),
                default_value=field.default_value,
                is_required=False,
                description=field.description,
            )
            for name, field in configuration.to_fields_dict().items()
        }
    )
    shape.check_values = check
    return shape
