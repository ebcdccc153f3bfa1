"""What other parts may want to hear of: they know this one, and not the other way round."""

from __future__ import annotations

from django.dispatch import Signal

# Sent with ``old_root`` and ``new_root``, the SHA-256 of each, in the transaction that founds the
# repository anew.
refounded = Signal()
