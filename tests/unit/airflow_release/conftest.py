from release_host import host, store  # noqa: F401
