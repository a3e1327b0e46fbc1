"""One interface over folders and S3, and the faults of both."""
