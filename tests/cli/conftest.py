"""The toy project and runs that train nothing."""

from toy_project import command, conf, fake_run, trained  # noqa: F401
