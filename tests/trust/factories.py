"""Targets to publish, and keys to sign with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from server.trust import actions, roles, signers
from server.trust.targets import Published, SignedTarget

MODEL = "recyclables"


def make_target(
    content: str = "weights", *, model: str = MODEL, label: str = "v1", **custom: Any
) -> SignedTarget:
    """Return a release's file."""
    data = content.encode()
    path = f"{model}/production/{label}/tflite-int8"
    custom = {"kind": "artifact", "model": model, "labels": ["cardboard", "glass"]} | custom
    return SignedTarget(path, hashlib.sha256(data).hexdigest(), len(data), custom)


def make_policy(model: str = MODEL, **custom: Any) -> SignedTarget:
    """Return a policy, a file of no bytes."""
    digest = hashlib.sha256(b"").hexdigest()
    return SignedTarget(f"{model}/policy", digest, 0, {"kind": "policy", "revoked": []} | custom)


def publish(*targets: SignedTarget, model: str = MODEL, **options: Any) -> Published:
    """Publish a model's targets."""
    return actions.publish(
        role=roles.role_of(model), paths=roles.paths_of(model), targets=targets, **options
    )


def rotate(kind: str, **options: Any) -> None:
    """Appoint a new key, as the command does."""
    from server.trust import plans

    key = signers.read_public(signers.make_key(signers.settings.TRUST_KEYS, kind))
    actions.change(plan=plans.rotate(kind, key), appoints_keys=True, **options)


def reroot(folder: Path, keyring: Sequence[Path] = (), **options: Any) -> list[Path]:
    """Replace the root's keys, and return the files of the new ones."""
    from server.trust import plans

    made = [signers.make_key(folder, roles.ROOT) for _ in range(3)]
    plan = plans.replace_root_keys([signers.read_public(path) for path in made])
    keys = signers.Keyring([*keyring, *made])
    actions.change(plan=plan, keyring=keys, appoints_keys=True, **options)
    return made


def make_ecdsa_key(path: Path) -> str:
    """Write a P-256 key, as a service would hold it, and its public part; return its PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pem)
    path.with_suffix(".pub").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return pem.decode()
