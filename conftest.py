"""How often Hypothesis tries each property: the profile that HYPOTHESIS_PROFILE names, or quick."""

import os

from hypothesis import HealthCheck, Phase, settings

settings.register_profile("quick", deadline=None, derandomize=True, max_examples=25)
settings.register_profile(
    "deep", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow]
)
# A broken vlpt.py has to fail; the smallest failing case is not of interest.
settings.register_profile(
    "mutants", settings.get_profile("quick"), phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.getenv("HYPOTHESIS_PROFILE", "quick"))
