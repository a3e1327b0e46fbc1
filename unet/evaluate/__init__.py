"""The evaluation job: settings, driver, scorer."""
