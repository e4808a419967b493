"""The signals that stop a run: the driver ends at a clean line, and workers leave them to the driver."""

import signal

ASKED = (signal.SIGINT, signal.SIGTERM)
"""Of people and schedulers who ask for the end."""
NOTIFIED = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Of a terminal that is gone, and a warning of a scheduler: often sent twice in a row. Windows has neither."""
STOPPING = (*ASKED, *NOTIFIED)
