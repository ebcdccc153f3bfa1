"""The console's home takes the place of the admin's index."""

from __future__ import annotations

from django.contrib import admin

admin.site.index_template = "console/home.html"
admin.site.index_title = "Home"
admin.site.empty_value_display = "–"
