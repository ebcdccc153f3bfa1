"""Whatever a server or a disk holds: a value of the right type or a clear error, nothing else."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis.strategies as st
import pytest
from hypothesis import assume, example, given, settings
from nightferry.errors import InvalidManifestError
from nightferry.manifest import Kind, Manifest, parse_json, parse_manifest
from nightferry.models import Transfer
from nightferry.state import Installed, State
from nightferry.store import StateStore, decode_state, encode_state
from nightferry.testing import FakeServer

unhurried = settings(max_examples=60, deadline=None)  # other processes share the machine

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
SHA256 = st.text("0123456789abcdef", min_size=64, max_size=64)
NOW = 1_700_000_000.0


def _document(**members: object) -> dict[str, object]:
    with FakeServer() as server:
        server.publish("recyclables", b"weights", ["can", "cup"])
        _, document, _ = server.answer_update("recyclables", None)
    assert document is not None
    return {**document, **members}


VALID = _document()
MEMBERS = sorted(VALID)


@unhurried
@given(JSON)
def test_any_json_is_a_manifest_or_an_error(document: object) -> None:
    with pytest.raises(InvalidManifestError, match="manifest"):
        parse_manifest(document)


def _try_to_parse(document: object) -> Manifest | None:
    """Return the manifest, None where it was refused with a sentence."""
    try:
        return parse_manifest(document)
    except InvalidManifestError as error:
        sentence = str(error)
    assert re.fullmatch(r"The manifest.*\.", sentence, re.DOTALL)
    return None


@unhurried
@given(st.sampled_from(MEMBERS), JSON)
def test_any_member_may_be_anything(member: str, value: object) -> None:
    manifest = _try_to_parse({**VALID, member: value})
    if manifest is not None:
        assert isinstance(manifest.version, int)
        assert manifest.kind is not Kind.UPDATE or manifest.required_artifact().size_bytes > 0


@unhurried
@given(st.sampled_from(sorted(VALID["artifact"])), JSON)
def test_any_member_of_the_artifact_may_be_anything(member: str, value: object) -> None:
    manifest = _try_to_parse({**VALID, "artifact": {**VALID["artifact"], member: value}})
    if manifest is not None:
        path = manifest.required_artifact().path
        assert path.startswith("/")
        assert not path.startswith("//")


@unhurried
@given(st.dictionaries(st.text(max_size=10).filter(lambda name: name not in VALID), JSON))
def test_unknown_members_change_nothing_and_are_kept(more: dict[str, object]) -> None:
    plain, extended = parse_manifest(VALID), parse_manifest({**VALID, **more})
    assert extended.label == plain.label
    assert extended.artifact == plain.artifact
    assert extended.document == {**VALID, **more}


@unhurried
@given(st.binary(max_size=200))
@example(b'{"a":' * 100_000)
@example(b"1" * 10_000)
@example(b'{"a": 1e999}')
def test_any_bytes_are_an_object_or_an_error(text: bytes) -> None:
    with contextlib.suppress(InvalidManifestError):
        assert isinstance(parse_json(text), dict)


# States


def _manifest(number: int, sha256: str, kind: Kind, revoked: list[str]) -> Manifest:
    artifact = {**VALID["artifact"], "sha256": sha256}
    return parse_manifest(
        {
            **VALID,
            "label": f"v{number}",
            "version": number,
            "kind": kind.value,
            "artifact": None if kind is Kind.ROLLBACK_TO_EMBEDDED else artifact,
            "revoked": revoked,
        }
    )


HASHES = [digit * 64 for digit in "abcd"]
MANIFESTS = st.builds(
    _manifest,
    st.integers(1, 6),
    st.sampled_from(HASHES),
    st.sampled_from(list(Kind)),
    st.lists(st.sampled_from(HASHES), max_size=2),
)


COUNTERS = {f"v{number}": number for number in range(1, 7)}


def _stage(state: State) -> State:
    offered = state.pending()
    if offered is None or offered.artifact is None or state.held_back(NOW):
        return state
    if COUNTERS[offered.label] < state.floor:
        return state
    sha256 = offered.artifact.sha256
    path = f"blobs/sha256/{sha256[:2]}/{sha256}"
    transfer = Transfer(label=offered.label, received_bytes=9, resumed_bytes=0, size_bytes=9)
    return state.with_staged(Installed(offered, path, COUNTERS[offered.label]), transfer)


def _start(state: State) -> State:
    """Begin to use the active release, as ``nightferry.trial`` does; an embedded model is there."""
    if state.active and state.active.has_crashed():
        return state.fallen_back("crashed", NOW)
    return state.started()


STEPS = st.lists(
    st.one_of(
        MANIFESTS.map(lambda manifest: lambda state: state.answered(manifest, '"tag"', NOW)),
        st.builds(
            lambda counter, revoked, ordered: (
                lambda state: state.informed(
                    min_counter=counter, revoked=revoked, embedded_ordered=ordered, now=NOW
                )
            ),
            st.integers(0, 6),
            st.frozensets(st.sampled_from(HASHES), max_size=2),
            st.booleans(),
        ),
        st.sampled_from(
            [
                State.checking,
                lambda state: state.unchanged(NOW),
                lambda state: state.nothing_offered(NOW),
                State.downloading,
                State.paused,
                State.verifying,
                _stage,
                _stage,
                State.testing,
                State.passed,
                State.passed,
                State.activated,
                State.activated,
                _start,
                _start,
                State.succeeded,
                lambda state: state.rolled_back_to_embedded() if state.wants_embedded() else state,
                lambda state: state.fallen_back("reported", NOW),
                State.confirmed,
                lambda state: state.with_pin(state.active) if state.active else state,
                lambda state: state.without_pin(None),
                State.without_previous,
                lambda state: state.sent_away(NOW + 60),
            ]
        ),
        st.sampled_from(HASHES).map(lambda sha256: lambda state: state.without({sha256})),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_states_stay_sound_and_survive_the_disk(steps: list) -> None:
    state = State()
    for step in steps:
        before = state
        state = step(state)
        text = json.dumps(encode_state(state)).encode()
        assert decode_state(parse_json(text)) == state
        assert state.floor >= before.floor, "the floor never falls"
        assert state.staged is None or state.staged.counter >= state.floor
        assert not state.referenced() & state.revoked, "a revoked file is never kept"
        if step is _start and before.active and before.active.confirmed:
            assert state == before, "what is confirmed is never left by starting it"
        if step is State.activated and state.active != before.active:
            assert before.staged.is_ready, "nothing untested comes into use"
            assert before.staged.counter == state.active.counter <= state.floor
        if state.active is None and before.active is not None:
            lost = before.active.sha256
            left = before.wants_embedded() or before.previous is None
            assert left or {lost, before.previous.sha256} <= before.referenced()


@settings(max_examples=25, deadline=None)
@given(STEPS, st.data())
def test_a_torn_state_file_is_never_a_wrong_state(steps: list, data: st.DataObject) -> None:
    state = State()
    for step in steps:
        state = step(state)
    assume(state != State())
    with TemporaryDirectory() as folder:
        store = StateStore(Path(folder), channel="production", runtime="tflite")
        store.update("m", lambda _old: state)
        path = Path(folder) / "m" / "production-tflite" / "state.json"
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole) - 1))
        path.write_bytes(whole[:cut])
        assert store.load("m") == state, "the copy stands in"
        path.with_name("state.backup.json").write_bytes(whole[:cut])
        assert store.load("m") == State()


@unhurried
@given(st.dictionaries(st.text(max_size=9), JSON) | JSON)
def test_any_json_is_a_state_or_an_error(document: object) -> None:
    with pytest.raises(ValueError, match=r"state|schema"):
        decode_state(document)


@unhurried
@given(st.sampled_from(sorted(encode_state(State()))), JSON)
def test_any_member_of_a_state_may_be_anything(member: str, value: object) -> None:
    try:
        state = decode_state({**encode_state(State()), member: value})
    except ValueError:
        return
    assert isinstance(state.failures, tuple)
    encode_state(state)
