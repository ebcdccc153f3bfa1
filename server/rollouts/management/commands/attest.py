"""``manage.py attest MODEL NUMBER``: a person says that a version is what it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from server.domain.errors import DomainError
from server.registry import actions as registry
from server.registry.queries import get_model, get_version
from server.registry.statements import statement
from server.rollouts import actions, queries
from server.trust import attestations

if TYPE_CHECKING:
    from server.registry.models import ModelVersion


class Command(BaseCommand):
    help = (
        "Attest a version that no worker has attested, or an uploaded one that a person has to"
        " confirm: from then on it may be signed. Run it where the attestation key is, and compare"
        " what it shows with what you know from elsewhere: the database may say anything."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("model", metavar="MODEL")
        parser.add_argument("number", metavar="NUMBER", type=int, help="the version's number")
        parser.add_argument("--yes", action="store_true", help="do not ask")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002
        try:
            model = get_model(options["model"])
            version = get_version(model, options["number"])
            made = statement(version, version.variants.filter(is_shipped=True))
            # Before anybody is asked: whether there is a key at all.
            attestation = attestations.attest(made, by=attestations.By.PERSON)
            self._show(version, made)
            if not options["yes"] and input("Attest exactly this? [y/N] ").strip() != "y":
                message = "Nothing was attested."
                raise CommandError(message)
            registry.attest_version(version=version, attestation=attestation)
            if not queries.is_signed(model):
                actions.request_publication(model=model)
        except DomainError as error:
            raise CommandError(error.detail) from error
        self.stdout.write(f"{version} is attested. What of it was released is signed now.")

    def _show(self, version: ModelVersion, made: dict[str, Any]) -> None:
        self.stdout.write(
            f"{version}, {made['source']}, published {version.published_at:%Y-%m-%d %H:%M} UTC"
        )
        run = version.runs.select_related("requested_by").first()
        person = run.requested_by if run is not None else None
        self.stdout.write(f"  asked for by   {person or 'nobody known'}")
        self.stdout.write(f"  source file    {version.source_filename} {version.source_sha256}")
        self.stdout.write(f"  labels         {', '.join(made['labels'])}")
        self.stdout.write(f"  preprocessing  {made['preprocessing']}")
        for file in made["files"]:
            self.stdout.write(
                f"  {file['runtime']} {file['precision']}, {file['size_bytes']} bytes"
                f" {file['requires'] or ''}\n    {file['sha256']}"
            )
