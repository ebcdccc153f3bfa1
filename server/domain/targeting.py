"""Targeting: which installations a rollout is for, by what they say of themselves.

All rules have to hold. An attribute that an installation does not state matches no rule, not even
a negative one, and the reason names it: a rollout never reaches a device by accident of silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from server.domain.errors import InvalidInput
from server.domain.versions import parse_version

ATTRIBUTES = ("app_version", "device_class", "os_version", "platform", "runtime", "sdk_version")

_MOST_RULES = 20
_MOST_VALUES = 200
_LONGEST_VALUE = 128
_SHOWN = 60


@dataclass(frozen=True)
class Rule:
    """One condition: ``attribute`` ``operator`` one or more ``values``."""

    attribute: str
    operator: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        shown = " or ".join(self.values)
        return f"{self.attribute} {self.operator.replace('_', ' ')} {shown[:_SHOWN]}"


@dataclass(frozen=True)
class Match:
    """Whether the rules hold for an installation, and why."""

    is_matched: bool
    reason: str


def _below(stated: str, wanted: str) -> bool | None:
    left, right = parse_version(stated), parse_version(wanted)
    return None if left is None or right is None else left < right


def _version_at_least(stated: str, values: tuple[str, ...]) -> bool | None:
    is_below = _below(stated, values[0])
    return None if is_below is None else not is_below


def _version_below(stated: str, values: tuple[str, ...]) -> bool | None:
    return _below(stated, values[0])


def _version_is(stated: str, values: tuple[str, ...]) -> bool | None:
    version = parse_version(stated)
    return None if version is None else version in {parse_version(value) for value in values}


# An operator answers None where what the installation states is no version.
_Operator = Callable[[str, tuple[str, ...]], bool | None]
_VERSION_OPERATORS: Mapping[str, _Operator] = {
    "version_at_least": _version_at_least,
    "version_below": _version_below,
    "version_is": _version_is,
}
_TEXT_OPERATORS: Mapping[str, _Operator] = {
    "is": lambda stated, values: stated.casefold() in {value.casefold() for value in values},
    "is_not": lambda stated, values: (
        stated.casefold() not in {value.casefold() for value in values}
    ),
    "starts_with": lambda stated, values: stated.casefold().startswith(
        tuple(value.casefold() for value in values)
    ),
}
_OPERATORS: Mapping[str, _Operator] = {**_TEXT_OPERATORS, **_VERSION_OPERATORS}
OPERATORS = tuple(_OPERATORS)
_SINGLE_VALUE = ("version_at_least", "version_below")


def match(rules: Sequence[Rule], attributes: Mapping[str, str]) -> Match:
    """Say whether every rule holds for an installation with these attributes."""
    for rule in rules:
        stated = attributes.get(rule.attribute, "")
        if not stated:
            reason = f"{rule.attribute} is not stated, and the rollout is for {rule}"
            return Match(is_matched=False, reason=reason)
        holds = _OPERATORS[rule.operator](stated, rule.values)
        if holds is None:
            reason = f"{rule.attribute} {stated[:_SHOWN]!r} is no version, and it is for {rule}"
            return Match(is_matched=False, reason=reason)
        if not holds:
            reason = f"{rule.attribute} is {stated[:_SHOWN]!r}, and the rollout is for {rule}"
            return Match(is_matched=False, reason=reason)
    if not rules:
        return Match(is_matched=True, reason="the rollout is for every installation")
    return Match(is_matched=True, reason="matches " + "; ".join(map(str, rules)))


def read_rules(values: object) -> tuple[Rule, ...]:
    """Read rules from JSON: a list of ``{"attribute", "operator", "values"}``.

    Raises:
        InvalidInput: ``invalid_targeting``, naming the rule and what is wrong with it.

    """
    if not isinstance(values, list) or len(values) > _MOST_RULES:
        raise _refused(f"Targeting takes a list of at most {_MOST_RULES} rules.")
    return tuple(_read_rule(number, value) for number, value in enumerate(values, start=1))


def _read_rule(number: int, value: object) -> Rule:
    if not isinstance(value, dict) or set(value) != {"attribute", "operator", "values"}:
        raise _refused(f"Rule {number} takes exactly the members attribute, operator and values.")
    attribute, operator, wanted = value["attribute"], value["operator"], value["values"]
    if attribute not in ATTRIBUTES:
        known = ", ".join(ATTRIBUTES)
        raise _refused(f"Rule {number}: attribute {attribute!r} is not known; there are {known}.")
    if operator not in OPERATORS:
        known = ", ".join(OPERATORS)
        raise _refused(f"Rule {number}: operator {operator!r} is not known; there are {known}.")
    if (
        not isinstance(wanted, list)
        or not 1 <= len(wanted) <= _MOST_VALUES
        or not all(isinstance(item, str) and 1 <= len(item) <= _LONGEST_VALUE for item in wanted)
    ):
        raise _refused(
            f"Rule {number}: values takes 1 to {_MOST_VALUES} texts"
            f" of 1 to {_LONGEST_VALUE} characters."
        )
    if operator in _SINGLE_VALUE and len(wanted) != 1:
        raise _refused(f"Rule {number}: {operator} takes one value.")
    if operator in _VERSION_OPERATORS:
        for item in wanted:
            if parse_version(item) is None:
                raise _refused(f"Rule {number}: {item!r} is no version, such as 2.4.0 or 16.")
    return Rule(attribute, operator, tuple(wanted))


def _refused(sentence: str) -> InvalidInput:
    return InvalidInput(sentence, code="invalid_targeting")
