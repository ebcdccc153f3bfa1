"""Whatever is done in whatever order: devices follow, and see what was published last."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.trust import actions, queries, roles, signers
from server.trust.models import MetadataFile
from server.trust.targets import SignedTarget
from tests.trust.device import Device, look
from tests.trust.factories import make_target, publish, reroot, rotate

if TYPE_CHECKING:
    from pytest_django.fixtures import SettingsWrapper

pytestmark = pytest.mark.django_db

_MODELS = st.sampled_from(["recyclables", "digits"])
_STEPS = st.one_of(
    st.tuples(st.just("publish"), _MODELS, st.integers(0, 2)),
    st.tuples(st.just("delete"), _MODELS),
    st.tuples(st.just("rotate"), st.sampled_from(roles.KINDS[1:])),
    st.tuples(st.just("reroot")),
    st.tuples(st.just("wait"), st.sampled_from([1, 30, 24 * 4, 24 * 40])),
)


class World:
    """The repository, the clock, and what devices should see."""

    def __init__(self, folder: Path) -> None:
        self.now = timezone.now()
        self.listed: dict[str, SignedTarget] = {}
        self.folder = folder

    def step(self, verb: str, *arguments: object) -> None:
        """Do one thing."""
        getattr(self, verb)(*arguments)

    def publish(self, model: str, content: int) -> None:
        target = make_target(str(content), model=model)
        published = publish(target, model=model, now=self.now)
        assert published.is_new is (self.listed.get(model) != target)
        self.listed[model] = target

    def delete(self, model: str) -> None:
        publish(model=model, now=self.now)
        self.listed.pop(model, None)

    def rotate(self, kind: str) -> None:
        rotate(kind, now=self.now)

    def reroot(self) -> None:
        reroot(signers.settings.TRUST_KEYS, now=self.now)

    def wait(self, hours: int) -> None:
        self.now += dt.timedelta(hours=hours)
        actions.renew(now=self.now)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(_STEPS, min_size=1, max_size=8), seldom=st.integers(2, 4))
def test_any_sequence(settings: SettingsWrapper, steps: list[tuple], seldom: int) -> None:
    MetadataFile.objects.all().delete()
    with tempfile.TemporaryDirectory() as name:
        settings.TRUST_KEYS = Path(name) / "keys"
        world = World(Path(name))
        world.publish("recyclables", 0)
        often, rarely = (Device(Path(name) / each) for each in ("often", "rarely"))
        versions: dict[str, int] = {}
        for number, step in enumerate(steps):
            world.step(*step)
            fresh = Device(Path(name) / f"fresh {number}", queries.first_root())
            devices = [often, fresh, *([rarely] if number % seldom == 0 else [])]
            look(devices, world.listed.values(), world.now)
            for model in {"recyclables", "digits"} - world.listed.keys():
                assert not fresh.lists(f"{model}/production/v1/tflite-int8")
            now = queries.current_versions()
            assert all(now[role] >= version for role, version in versions.items())
            assert queries.alarms(world.now) == []
            versions = now
        look([rarely], world.listed.values(), world.now)
