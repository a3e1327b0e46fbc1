"""The segmentation job: settings, driver, listing, ledger, lease, workers, recorder."""
