"""Numbers existing releases over all channels of their model, and leaves them to be signed."""

from __future__ import annotations

from itertools import groupby

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models
from django.utils import timezone


def number_releases(apps, schema_editor):
    Release = apps.get_model("rollouts", "Release")
    Signing = apps.get_model("rollouts", "Signing")
    releases = Release.objects.select_related("channel").order_by("channel__model", "created_at", "pk")
    for model, found in groupby(releases, key=lambda release: release.channel.model_id):
        counter = 0
        for counter, release in enumerate(found, start=1):
            release.counter = counter
            # Devices were told of it already.
            release.announced_at = release.created_at
            release.save(update_fields=["counter", "announced_at"])
        Signing.objects.create(
            model_id=model, next_counter=counter + 1, wanted=1, wanted_at=timezone.now()
        )


class Migration(migrations.Migration):
    dependencies = [
        ("rollouts", "0001_initial"),
        ("registry", "0001_initial"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddField("channel", "embedded_at", models.DateTimeField(blank=True, editable=False, null=True)),
        migrations.AddField("release", "announced_at", models.DateTimeField(blank=True, null=True)),
        migrations.AddField("release", "counter", models.PositiveBigIntegerField(null=True)),
        migrations.CreateModel(
            name="Signing",
            fields=[
                ("model", models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, primary_key=True, related_name="signing", serialize=False, to="registry.model")),
                ("next_counter", models.PositiveBigIntegerField(default=1)),
                ("wanted", models.PositiveBigIntegerField(default=0)),
                ("wanted_at", models.DateTimeField(blank=True, null=True)),
                ("signed", models.PositiveBigIntegerField(default=0)),
                ("signed_at", models.DateTimeField(blank=True, null=True)),
                ("settle_at", models.DateTimeField(blank=True, null=True)),
                ("failure", models.TextField(blank=True)),
                ("failed_at", models.DateTimeField(blank=True, null=True)),
            ],
        ),
        migrations.CreateModel(
            name="Recall",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("reason", models.TextField(blank=True)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("created_by", models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name="+", to=settings.AUTH_USER_MODEL)),
                ("version", models.OneToOneField(on_delete=django.db.models.deletion.PROTECT, related_name="recall", to="registry.modelversion")),
            ],
        ),
        migrations.CreateModel(
            name="Patch",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("algorithm", models.CharField(max_length=20)),
                ("state", models.CharField(choices=[("offered", "Offered"), ("refused", "Refused")], max_length=10)),
                ("sha256", models.CharField(blank=True, max_length=64)),
                ("size_bytes", models.PositiveBigIntegerField(blank=True, null=True)),
                ("refusal", models.TextField(blank=True, help_text="Why devices are not offered it.")),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("announced_at", models.DateTimeField(blank=True, null=True)),
                ("from_variant", models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="patches_from", to="registry.variant")),
                ("to_variant", models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="patches_to", to="registry.variant")),
            ],
            options={
                "verbose_name_plural": "patches",
                "ordering": ("to_variant", "-created_at"),
                "constraints": [models.UniqueConstraint(fields=("from_variant", "to_variant", "algorithm"), name="patch_once_per_pair")],
            },
        ),
        migrations.RunPython(number_releases, migrations.RunPython.noop),
        migrations.AlterField("release", "counter", models.PositiveBigIntegerField()),
        migrations.AddConstraint("release", models.UniqueConstraint(fields=("channel", "counter"), name="counter_once_per_channel")),
    ]
