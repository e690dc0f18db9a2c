"""The whole service on one host: embedded Redis and S3, child processes, and `flux2 up`."""
