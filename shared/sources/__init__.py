"""Files that requests name, wherever people keep them: on this host, on the hub, in S3, behind https, or uploaded."""
