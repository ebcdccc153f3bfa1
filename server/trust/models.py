"""The signed files, and what is about to be signed."""

from __future__ import annotations

from typing import Any

from django.db import models


class MetadataChanged(RuntimeError):
    """A programming error: code tried to change what was signed."""


class Repository(models.Model):
    """One row, locked by whoever changes the repository."""

    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        """Name the row."""
        return "the repository"


class MetadataFile(models.Model):
    """A signed file that devices may fetch: what was signed once is never changed.

    Files that belong together are added in one transaction; a timestamp's row is what shows the
    others to devices. Those of a repository that was given up stay as a record and are served to
    nobody; their versions are never used again, because caches may hold them.
    """

    role = models.CharField(max_length=100)
    version = models.PositiveIntegerField()
    content = models.BinaryField()
    sha256 = models.CharField(max_length=64)
    expires_at = models.DateTimeField()
    created_at = models.DateTimeField()
    is_archived = models.BooleanField(default=False)

    class Meta:
        """A version of a role once, whoever writes."""

        ordering = ("role", "-version")
        constraints = (
            models.UniqueConstraint(fields=("role", "version"), name="trust_version_once_per_role"),
            models.CheckConstraint(
                condition=models.Q(version__gt=0), name="trust_versions_start_at_1"
            ),
        )

    def __str__(self) -> str:
        """Return the name under which devices fetch it."""
        return f"{self.version}.{self.role}.json"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Refuse any change."""
        if not self._state.adding:
            message = f"{self} is signed and cannot be changed."
            raise MetadataChanged(message)
        super().save(*args, **kwargs)


class Draft(models.Model):
    """A file whose version is settled and that is being signed.

    It is written before a key is used: after a crash the very same bytes are signed again, so that
    no version of a role is ever signed over two contents. All drafts become files together.
    """

    role = models.CharField(max_length=100, unique=True)
    version = models.PositiveIntegerField()
    content = models.BinaryField(help_text="with the signatures it has so far")
    seal = models.TextField(
        blank=True, help_text="Shows that whoever may sign wrote it, and nobody else."
    )
    created_at = models.DateTimeField()

    def __str__(self) -> str:
        """Return the name it will have."""
        return f"{self.version}.{self.role}.json"


class Alarm(models.Model):
    """When the log last said that a role's metadata are about to expire."""

    role = models.CharField(max_length=100, unique=True)
    logged_at = models.DateTimeField()

    def __str__(self) -> str:
        """Name the role."""
        return self.role
