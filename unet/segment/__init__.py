"""The segmentation job: settings, driver, listing, ledger, lease, workers, recorder."""

import os

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
"""Arrow's own pool keeps what was freed, by thread. It takes this one if it is imported only now."""
