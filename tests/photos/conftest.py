from __future__ import annotations

import pytest

from server.registry.actions import create_model
from tests.photos.people import register


@pytest.fixture
def model(db):
    return create_model(slug="things", labels=["glass", "metal", "paper"])


@pytest.fixture
def person(client, model):
    return register(client)


@pytest.fixture
def staff(django_user_model):
    return django_user_model.objects.create_superuser("operator", password="only for tests")
