"""What can be changed, as plans: what is new in a :class:`Change`, before anything follows from it.

A plan is carried out here (``repository.commit``) or drawn, signed elsewhere and brought back.
"""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, TargetFile, Targets
from tuf.api.serialization import DeserializationError

from server.domain.errors import Conflict, InvalidInput
from server.trust import roles
from server.trust.repository import Change, Document, Plan, View, missing_key
from server.trust.signers import Keyring
from server.trust.targets import SignedTarget

_RENEW_BELOW = 0.5
# An hour, less what the clock of the schedule may be early.
_TIMESTAMP_AGE = dt.timedelta(minutes=55)
_CLOCKS_APART = dt.timedelta(hours=1)


def found(keys: Mapping[str, Sequence[Key]]) -> Plan:
    """Plan the first version of every role, signed by these keys, by kind.

    Raises:
        Conflict: ``trust_initialised``.

    """

    def plan(change: Change) -> None:
        _require_empty(change)
        root = Root(consistent_snapshot=True)
        for kind in roles.TOP_LEVEL:
            for key in keys[kind]:
                root.add_key(key, kind)
        root.roles[roles.ROOT].threshold = roles.ROOT_THRESHOLD
        change.start(roles.ROOT, root)
        models = keys[roles.MODELS][0]
        # The models' key stands there before any model does, so that the first needs no other.
        change.start(roles.TARGETS, Targets(delegations=Delegations({models.keyid: models}, {})))

    return plan


def refound(begin: Plan) -> Plan:
    """Plan another repository, begun by :func:`found` or :func:`bring_in`, with the same content.

    It delegates what the present one does, and lists what the present one's keys have signed.

    Raises:
        Conflict: ``key_in_use`` where a key has signed for the present one.

    """

    def plan(change: Change) -> None:
        old = Change(View.load(), change.now)
        begin(change)
        require_other_keys(change.root.keys | change.delegations.keys, old)
        for role, delegated in old.delegated.items():
            delegate(role, delegated.paths or ())(change)
            listed = old.view[role].signed.targets if old.is_signed(role) else {}
            change.start(role, Targets(targets=copy.deepcopy(listed)))

    return plan


def require_other_keys(keys: Iterable[str], old: Change) -> None:
    """Raise where one of these keys, by id, signs in the repository that is given up.

    Raises:
        Conflict: ``key_in_use``.

    """
    used = {keyid: kind for kind in roles.KINDS for keyid in current_keys(old, kind)}
    again = sorted({used[keyid] for keyid in keys if keyid in used})
    if again:
        message = (
            f"The new repository needs other keys than the present one, also for"
            f" {', '.join(again)}. Where TRUST_{again[0].upper()}_KEY or its like is set, set the"
            " new one first."
        )
        raise Conflict(message, code="key_in_use")


def list_targets(
    role: str, paths: Sequence[str], targets: Iterable[SignedTarget], keyring: Keyring
) -> Plan:
    """Plan that a role lists exactly these targets, and is delegated exactly these paths.

    Raises:
        Conflict: ``role_not_delegated``.
        InvalidInput: ``target_outside_role``, ``duplicate_target``, ``fraction_in_custom``,
            ``invalid_target``.

    """
    wanted: dict[str, TargetFile] = {}
    for target in targets:
        if target.path in wanted:
            message = f"{target.path} is listed twice."
            raise InvalidInput(message, code="duplicate_target")
        wanted[target.path] = _target_file(target)

    def plan(change: Change) -> None:
        delegate(role, paths)(change)
        if roles.TARGETS in change.new and not change.is_enough(
            roles.TARGETS, change.at_hand(roles.TARGETS, keyring)
        ):
            raise _not_delegated(role)
        _require_own_paths(change.delegated[role], wanted)
        if role not in change.view:
            change.start(role, Targets(targets=wanted))
        elif change.view[role].signed.targets != wanted:
            change.renew(role).signed.targets = wanted

    return plan


def delegate(role: str, paths: Sequence[str]) -> Plan:
    """Plan that a model's role is signed by the models' key, for these paths."""

    def plan(change: Change) -> None:
        known = change.delegated.get(role)
        if known is not None and list(known.paths or ()) == list(paths):
            return
        delegations = change.renew(roles.TARGETS).signed.delegations
        keyid = next(iter(delegations.keys))
        delegations.roles[role] = DelegatedRole(
            role, [keyid], 1, terminating=True, paths=list(paths)
        )

    return plan


def rotate(kind: str, key: Key) -> Plan:
    """Plan that another key signs for a kind of roles, and no longer the one before.

    Raises:
        Conflict: ``key_in_use``.

    """

    def plan(change: Change) -> None:
        if key.keyid in current_keys(change, kind):
            message = f"This key signs for {kind} already; give or configure the new one."
            raise Conflict(message, code="key_in_use")
        if kind == roles.MODELS:
            delegations = change.renew(roles.TARGETS).signed.delegations
            delegations.keys = {key.keyid: key}
            for role in delegations.roles.values():
                role.keyids = [key.keyid]
        else:
            _replace(change.renew(roles.ROOT).signed, kind, [key])

    return plan


def replace_root_keys(keys: Sequence[Key]) -> Plan:
    """Plan a root of other keys; enough of the old and of the new ones have to sign it.

    Raises:
        InvalidInput: ``wrong_number_of_keys``.

    """
    if len({key.keyid for key in keys}) != roles.ROOT_KEYS:
        message = f"A root has {roles.ROOT_KEYS} different keys; {len(keys)} were given."
        raise InvalidInput(message, code="wrong_number_of_keys")

    def plan(change: Change) -> None:
        _replace(change.renew(roles.ROOT).signed, roles.ROOT, keys)

    return plan


def extend(role: str) -> Plan:
    """Plan the same root or targets again, with a whole life before them."""

    def plan(change: Change) -> None:
        change.renew(role)

    return plan


def bring_in(documents: Sequence[bytes]) -> Plan:
    """Plan what was drawn here and signed elsewhere.

    Raises:
        InvalidInput: ``invalid_metadata``.
        Conflict: ``wrong_metadata_version``, ``wrong_metadata_life``, ``delegation_dropped``,
            ``not_enough_signatures``.

    """
    parsed = [_parse(content) for content in documents]

    def plan(change: Change) -> None:
        for document in parsed:
            role = document.signed.type
            _require_next(change, role, document)
            change.new[role] = document
        if roles.ROOT not in change.view and {*change.new} != {roles.ROOT, roles.TARGETS}:
            message = "The first root and the first targets come in together."
            raise Conflict(message, code="wrong_metadata_version")
        for role in change.new:
            if not change.is_signed(role):
                signed = len(change.signed_by(role))
                message = (
                    f"{role} has {signed} good signatures, which is not enough: two keys of three"
                    " sign a root, and where it changes its keys, two of the old and of the new."
                )
                raise Conflict(message, code="not_enough_signatures")
        dropped = _delegated(change.view) - set(change.delegated)
        if dropped:
            message = (
                f"These targets no longer delegate {', '.join(sorted(dropped))}, which devices take"
                " for an attack. A model that ended keeps its role."
            )
            raise Conflict(message, code="delegation_dropped")

    return plan


def renew(keyring: Keyring, overdue: list[str]) -> Plan:
    """Plan to sign again what has been valid for half of its life, the timestamp every hour.

    What has no key here and under a third of its life left is added to ``overdue``.

    Raises:
        Conflict: ``signing_key_missing`` for the timestamp.

    """

    def plan(change: Change) -> None:
        overdue.clear()
        due = [role for role in change.view if _is_due(change, role)]
        signable = {
            role
            for role in (*due, roles.SNAPSHOT, roles.TIMESTAMP)
            if change.is_enough(role, change.at_hand(role, keyring))
        }
        if roles.TIMESTAMP not in signable:
            raise missing_key(roles.TIMESTAMP)
        if roles.SNAPSHOT not in signable:
            # What a new snapshot would have to name waits; the timestamp must not.
            signable &= {roles.ROOT, roles.TIMESTAMP}
        left_over = (role for role in due if role not in signable)
        overdue.extend(role for role in left_over if _is_alarming(change, role))
        for role in due:
            if role in signable:
                change.renew(role)

    return plan


def current_keys(change: Change, kind: str) -> dict[str, Key]:
    """Return the keys that sign for a kind of roles now."""
    if kind == roles.MODELS:
        return dict(change.delegations.keys)
    return {keyid: change.root.get_key(keyid) for keyid in change.root.roles[kind].keyids}


def _is_due(change: Change, role: str) -> bool:
    left, life = change.view.stored[role].expires_at - change.now, roles.life_of(role)
    if left > life + _CLOCKS_APART:
        return True  # signed by a clock that was ahead: devices take that for an attack
    if role == roles.TIMESTAMP:
        return life - left >= _TIMESTAMP_AGE
    return left < life * _RENEW_BELOW


def _is_alarming(change: Change, role: str) -> bool:
    left = change.view.stored[role].expires_at - change.now
    return left < roles.life_of(role) * roles.ALARM_BELOW


def _replace(root: Root, kind: str, keys: Sequence[Key]) -> None:
    kept = {key.keyid for key in keys}
    for keyid in [keyid for keyid in root.roles[kind].keyids if keyid not in kept]:
        root.revoke_key(keyid, kind)
    for key in keys:
        root.add_key(key, kind)


def _require_empty(change: Change) -> None:
    if roles.ROOT in change.view:
        message = "There is a repository already; a second root would lock every device out."
        raise Conflict(message, code="trust_initialised")


def _require_next(change: Change, role: str, document: Document) -> None:
    if role not in (roles.ROOT, roles.TARGETS):
        message = f"Only root and targets are signed elsewhere, not {role}."
        raise InvalidInput(message, code="invalid_metadata")
    expected = change.next_version(role)
    if document.signed.version != expected:
        message = (
            f"This is version {document.signed.version} of {role}, and the next is {expected}."
            " Export it again."
        )
        raise Conflict(message, code="wrong_metadata_version")
    left = document.signed.expires - change.now
    if not dt.timedelta(0) < left <= roles.life_of(role) + _CLOCKS_APART:
        message = (
            f"This {role} expires at {document.signed.expires:%Y-%m-%d %H:%M} UTC; it has to hold"
            f" from now on, and for {roles.life_of(role).days} days at most. Export it again."
        )
        raise Conflict(message, code="wrong_metadata_life")


def _require_own_paths(role: DelegatedRole, paths: Iterable[str]) -> None:
    for path in paths:
        if not role.is_delegated_path(path):
            message = f"{path} is none of the paths of {role.name}: {', '.join(role.paths or ())}."
            raise InvalidInput(message, code="target_outside_role")


def _delegated(view: Mapping[str, Document] | Any) -> set[str]:
    if roles.TARGETS not in view:
        return set()
    return set(view[roles.TARGETS].signed.delegations.roles)


def _not_delegated(role: str) -> Conflict:
    model = role.removeprefix("model-")
    message = (
        f"{role} is not delegated yet, or for other paths, and the key of the targets role is not"
        f" on this machine. Where it is, run `python manage.py trust delegate {model} --key FILE`."
    )
    return Conflict(message, code="role_not_delegated")


def _parse(content: bytes) -> Document:
    try:
        return Metadata.from_bytes(content)
    except (DeserializationError, RepositoryError) as error:
        message = "A file is no metadata of The Update Framework."
        raise InvalidInput(message, code="invalid_metadata") from error


def _target_file(target: SignedTarget) -> TargetFile:
    custom = dict(target.custom)
    if fraction := _find_fraction(custom, "custom"):
        message = f"{fraction} of {target.path} is a fraction, which signed metadata cannot hold."
        raise InvalidInput(message, code="fraction_in_custom")
    try:
        return TargetFile(
            target.size_bytes, {"sha256": target.sha256}, target.path, {"custom": custom}
        )
    except ValueError as error:
        message = f"{target.path} cannot be listed: {error}."
        raise InvalidInput(message, code="invalid_target") from error


def _find_fraction(value: object, name: str) -> str:
    """Return where a float stands in JSON, else ``""``."""
    if isinstance(value, float):
        return name
    members: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        members = value.items()
    elif isinstance(value, list | tuple):
        members = enumerate(value)
    return next((at for key, item in members if (at := _find_fraction(item, f"{name}.{key}"))), "")
