"""The training job: settings, driver, the loop of each worker, batches, learner, checkpoints."""
