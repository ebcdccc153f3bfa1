"""Where keys come from. No key service is reachable from the tests: a stand-in is registered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

import pytest
from django.core.exceptions import ImproperlyConfigured
from securesystemslib.signer import (
    SIGNER_FOR_URI_SCHEME,
    CryptoSigner,
    Key,
    SecretsHandler,
    Signature,
    Signer,
)

from server.domain.errors import Conflict, InvalidInput, Unavailable
from server.trust import actions, plans, queries, roles, signers
from tests.trust.device import Device, look
from tests.trust.factories import make_ecdsa_key, make_target, publish

if TYPE_CHECKING:
    from pytest_django.fixtures import SettingsWrapper

pytestmark = pytest.mark.django_db


class Service(Signer):
    """Signs as a key service does: by the name of a key, which never comes here."""

    answers = True

    def __init__(self, path: str, key: Key) -> None:
        self._path, self._key = path, key

    @property
    def public_key(self) -> Key:
        return self._key

    @classmethod
    def from_priv_key_uri(
        cls,
        priv_key_uri: str,
        public_key: Key,
        secrets_handler: SecretsHandler | None = None,  # noqa: ARG003 - part of the interface
    ) -> Service:
        return cls(urlparse(priv_key_uri).path, public_key)

    def sign(self, payload: bytes) -> Signature:
        if not self.answers:
            raise TimeoutError
        return CryptoSigner.from_priv_key_uri(f"file2:{self._path}", self._key).sign(payload)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> type[Service]:
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "testkms", Service)
    monkeypatch.setattr(Service, "answers", True)
    return Service


@pytest.mark.parametrize("kind", roles.ONLINE)
def test_a_service_with_ecdsa_keys_signs(
    tmp_path: Path, settings: SettingsWrapper, service: type[Service], kind: str
) -> None:
    publish(make_target("one"))
    device = Device(tmp_path / "device")
    device.refresh()
    make_ecdsa_key(tmp_path / "held by the service")
    public = signers.read_public(tmp_path / "held by the service.pub")
    settings.TRUST_URIS = {kind: f"testkms:{tmp_path}/held by the service"}
    for path in signers.files_of(kind):
        path.unlink()

    actions.change(plan=plans.rotate(kind, public), appoints_keys=True)
    publish(make_target("two"))

    look([device, Device(tmp_path / "fresh", queries.first_root())], [make_target("two")])
    before = queries.current_versions()
    service.answers = False
    with pytest.raises(Unavailable) as caught:
        publish(make_target("three"))
    assert caught.value.code == "signer_unavailable"
    assert queries.current_versions() == before
    service.answers = True
    publish(make_target("three"))
    look([device], [make_target("three")])


def test_keys_come_from_variables_and_files(
    tmp_path: Path, settings: SettingsWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    actions.ensure_repository()
    for kind in roles.ONLINE:
        pem = make_ecdsa_key(tmp_path / kind)
        if kind == roles.MODELS:
            monkeypatch.setenv("TRUST_MODELS_KEY_FILE", str(tmp_path / kind))
        else:
            monkeypatch.setenv(f"TRUST_{kind.upper()}_KEY", pem)
        key = signers.Keyring().public_key(kind)
        assert key is not None
        actions.change(plan=plans.rotate(kind, key), appoints_keys=True)
    for kind in roles.ONLINE:
        assert signers.where(kind) == f"TRUST_{kind.upper()}_KEY"
        for path in signers.files_of(kind):
            path.unlink()

    publish(make_target())

    look([Device(tmp_path / "device")], [make_target()])
    monkeypatch.setenv("TRUST_MODELS_KEY_FILE", str(tmp_path / "nothing"))
    with pytest.raises(ImproperlyConfigured, match="TRUST_MODELS_KEY_FILE names"):
        publish(make_target("two"))
    monkeypatch.setenv("TRUST_MODELS_KEY_FILE", str(tmp_path / "models.pub"))
    with pytest.raises(InvalidInput, match="TRUST_MODELS_KEY is no private key"):
        publish(make_target("two"))


def test_configured_keys_await_a_ceremony(
    tmp_path: Path, settings: SettingsWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUST_SNAPSHOT_KEY", make_ecdsa_key(tmp_path / "key"))

    with pytest.raises(Conflict, match="trust init"):
        publish(make_target())

    assert not queries.is_initialised()
    assert not settings.TRUST_KEYS.exists()
