"""hadolint is a program that comes as a wheel for the commonest machines; elsewhere its test is left to them."""

import sysconfig
from pathlib import Path

HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"
collect_ignore = [] if HADOLINT.exists() or sysconfig.get_platform() == "linux-x86_64" else ["test_dockerfile_lint.py"]
