"""What the ledger tells the layers above it."""

from __future__ import annotations

from django.dispatch import Signal

# Sent once for each job that ends (succeeded, failed or cancelled), with ``job``: the Job.
# Receivers run inside the transaction that ends the job, so that what they write becomes true
# together with it or not at all. A receiver that raises keeps the job from ending: the reaper
# tries again, and says so in the log.
job_finished = Signal()
