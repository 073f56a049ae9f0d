"""Property tests draw the same examples in every run, so that a red suite is the change's doing.

`HYPOTHESIS_PROFILE=explore make test` draws new ones, and more of them.
"""

import os

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=500, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
