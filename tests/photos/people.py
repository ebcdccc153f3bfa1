"""A volunteer and their phone, over REST."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from PIL import Image

API = "/api/v1"


@dataclass
class Person:
    """A registered volunteer."""

    id: str
    token: str
    client: Client

    def call(self, method: str, path: str, data: Any = None, **headers: str):
        kwargs = {"data": data, "content_type": "application/json"} if data is not None else {}
        return getattr(self.client, method)(
            API + path, headers={"Authorization": f"Bearer {self.token}", **headers}, **kwargs
        )

    def send(
        self, content: bytes | Path, *, model: str = "things", label: str = "glass", **headers: str
    ):
        name = content.name if isinstance(content, Path) else "photo.jpg"
        data = content.read_bytes() if isinstance(content, Path) else content
        return self.client.post(
            f"{API}/photos",
            {"model": model, "label": label, "image": SimpleUploadedFile(name, data)},
            headers={"Authorization": f"Bearer {self.token}", **headers},
        )

    def image(self, photo_id: str) -> bytes:
        answer = self.call("get", f"/photos/{photo_id}/image")
        assert answer.status_code == 200
        return answer.content


def register(client: Client, nickname: str = "wren", **consent: bool) -> Person:
    body = {
        "nickname": nickname,
        "consent_version": "1",
        "consent": {"train": True, **consent},
    }
    answer = client.post(f"{API}/volunteers", body, content_type="application/json")
    assert answer.status_code == 201, answer.content
    return Person(answer.json()["id"], answer.json()["token"], client)


def picture(seed: int, *, size: tuple[int, int] = (320, 240), name: str = "JPEG", **save) -> bytes:
    """Return a sharp picture of its own, of coarse blocks with grain."""
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    pixels = np.asarray(blocks.resize(size, Image.Resampling.NEAREST), dtype=np.int16)
    grain = rng.integers(-20, 20, pixels.shape)
    buffer = io.BytesIO()
    image = Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
    image.save(buffer, name, **save)
    return buffer.getvalue()


def encoded(content: bytes, *, scale: float = 1, name: str = "JPEG", quality: int = 70) -> bytes:
    """Return the same picture in another file."""
    with Image.open(io.BytesIO(content)) as image:
        size = (round(image.width * scale), round(image.height * scale))
        buffer = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(
            buffer, name, quality=quality
        )
    return buffer.getvalue()
