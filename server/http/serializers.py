"""Strict serializers: what is not understood is refused, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rest_framework import serializers


class StrictSerializer(serializers.Serializer[Any]):
    """Refuses members it does not know, so that a misspelt one is not silently ignored."""

    def to_internal_value(self, data: Any) -> Any:
        """Read the members; raises ``ValidationError`` naming those nobody knows."""
        if isinstance(data, Mapping):
            known = {name for name, field in self.fields.items() if not field.read_only}
            unknown = sorted(str(name)[:60] for name in set(data) - known)
            if unknown:
                sentence = f"Not known here. Known: {', '.join(sorted(known)) or 'none'}."
                raise serializers.ValidationError({name: [sentence] for name in unknown})
        return super().to_internal_value(data)

    @classmethod
    def read(cls, data: Any, **options: Any) -> dict[str, Any]:
        """Return the checked members of ``data``; raises ``ValidationError``."""
        serializer = cls(data=data, **options)
        serializer.is_valid(raise_exception=True)
        return dict(serializer.validated_data)


class Text(serializers.CharField):
    """A string, and nothing that could be made one."""

    def to_internal_value(self, data: Any) -> str:
        """Refuse numbers."""
        if not isinstance(data, str):
            self.fail("invalid")
        return str(super().to_internal_value(data))


class Flag(serializers.BooleanField):
    """True or false, and not "yes", 1 or "off"."""

    def to_internal_value(self, data: Any) -> bool:
        """Refuse everything else."""
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class Whole(serializers.IntegerField):
    """A whole number, and not a string or a boolean."""

    def to_internal_value(self, data: Any) -> int:
        """Refuse everything else."""
        if isinstance(data, bool) or not isinstance(data, int):
            self.fail("invalid")
        return int(super().to_internal_value(data))


class Fraction(serializers.FloatField):
    """A finite number, and not a string or a boolean."""

    def to_internal_value(self, data: Any) -> float:
        """Refuse everything else."""
        if isinstance(data, bool) or not isinstance(data, int | float):
            self.fail("invalid")
        try:
            number = float(data)
        except OverflowError:
            self.fail("invalid")
        if number - number != 0:
            self.fail("invalid")
        return number
