from release_host import host, module  # noqa: F401
