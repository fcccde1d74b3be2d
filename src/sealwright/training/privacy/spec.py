"""What noise a run adds, the same for all who take part. Spec: docs/spec/privacy.md, Privacy specification."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, isqrt, sqrt
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sealwright.crypto.document import Digest, Document
from sealwright.errors import SettingsError
from sealwright.training.privacy.accountant import (
    Cost,
    concentrated,
    discrete_gaussian_rho,
    nothing,
    sum_of_gaussians_rho,
)
from sealwright.training.secagg.spec import RunSpec

Mechanism = Literal["central", "distributed"]
Decimal = Annotated[str, Field(max_length=24, pattern=r"^[0-9]{1,12}(?:\.[0-9]{1,11})?$")]
TAIL = 8  # standard deviations of one worker's noise that a number has room for


class PrivacySpec(Document):
    """Noise and budget of a run. The unit that is protected is one worker's whole update, added or removed."""

    format: Literal["sealwright-privacy-spec/v1"] = "sealwright-privacy-spec/v1"
    run_spec: Digest
    mechanism: Mechanism
    norm: Decimal  # L2 bound of one update, same unit as the run specification's clip
    noise_multiplier: Decimal  # standard deviation of the noise in the sum by the bound on one update
    colluding: Annotated[int, Field(ge=0, le=4095)]  # survivors whose noise is not counted on
    epsilon: Decimal  # budget of the run
    delta: Decimal

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (Fraction(self.norm) and Fraction(self.noise_multiplier) and Fraction(self.epsilon)):
            raise ValueError("norm, noise_multiplier and epsilon are over zero")
        if not 0 < Fraction(self.delta) < 1:
            raise ValueError("delta is over 0 and under 1")
        if self.mechanism == "central" and self.colluding:
            raise ValueError("colluding is for distributed noise: central noise is added by one party")
        return self


class NoisePlan:
    """A privacy specification beside its run specification: bounds and variances in steps of fixed point.

    Args:
        privacy: names `run`.
        run: weights are 1 there, since a weight in the sum is not hidden by noise.

    Raises:
        SettingsError: `dp-plan`: the two do not fit, or leave noise no room.
    """

    def __init__(self, privacy: PrivacySpec, run: RunSpec) -> None:
        """Check that both fit; see the class."""
        if privacy.run_spec != run.digest():
            raise unfit("the privacy specification names another run specification")
        if run.max_weight != 1:
            raise unfit(
                "max_weight is not 1: weights would be in the sum without noise, and raise its sensitivity"
            )
        self.privacy, self.run = privacy, run
        self.honest = run.min_survivors - privacy.colluding
        if self.honest < 1:
            raise unfit("as many colluding workers as survivors: nobody's noise can be counted on")
        if privacy.mechanism == "central" and run.mode == "masked":
            raise unfit(
                "central noise is added in a TEE: in mode masked the coordinator sees the sum before it"
            )
        self._check_room()

    @property
    def norm(self) -> Fraction:
        """L2 bound of an update before it is rounded, steps."""
        return Fraction(self.privacy.norm) * self.run.scale

    @property
    def bound2(self) -> int:
        """Square of the L2 bound of an update after rounding, steps²: half of √d more than before, which a random
        rounding keeps as a rule; `bounded` draws again where it does not."""
        return ceil((self.norm + Fraction(_root_up(self.run.elements), 2)) ** 2)

    @property
    def total_variance(self) -> Fraction:
        """σ² that the honest noise in every sum adds up to at least, steps²."""
        return Fraction(self.privacy.noise_multiplier) ** 2 * self.bound2

    @property
    def share_variance(self) -> Fraction:
        """σ² of the noise of one worker (0 where noise is central): enough if `honest` of them survive."""
        if self.privacy.mechanism == "central":
            return Fraction(0)
        return Fraction(-(-self.total_variance // self.honest))

    @property
    def central_variance(self) -> Fraction:
        """σ² of the noise that the aggregator adds (0 where workers do), steps²."""
        return Fraction(-(-self.total_variance // 1)) if self.privacy.mechanism == "central" else Fraction(0)

    def rho(self, survivors: int) -> float:
        """Return ρ of one sum of so many survivors: less, the more of them brought noise.

        Raises:
            SettingsError: `dp-plan`: fewer survivors than the run admits.
        """
        if survivors < self.run.min_survivors:
            raise unfit("fewer survivors than min_survivors: the noise would be too little")
        delta = sqrt(self.bound2) * (1 + 1e-9)
        if self.privacy.mechanism == "central":
            return discrete_gaussian_rho(delta, float(self.central_variance))
        honest = survivors - self.privacy.colluding
        return sum_of_gaussians_rho(delta, float(self.share_variance), honest, self.run.elements)

    def cost(self, survivors: int) -> Cost:
        """Return what one sum of so many survivors costs. Raises: as `rho`."""
        return concentrated(self.rho(survivors))

    def rounds(self) -> int:
        """Return how many rounds the budget admits at worst: with as few survivors as may be."""
        one, count = self.cost(self.run.min_survivors), 0
        spent = nothing()
        while count < 1 << 20 and (spent := spent + one).epsilon(float(self.privacy.delta)) <= float(
            self.privacy.epsilon
        ):
            count += 1
        return count

    def _check_room(self) -> None:
        # sums are held to `survivors` · steps, so each worker's number with its noise to `steps`
        noise = isqrt(int(max(self.share_variance, self.central_variance / self.run.min_survivors))) + 1
        if isqrt(self.bound2) + 1 + TAIL * noise > self.run.steps:
            raise unfit("no room for noise: take a larger clip, or a smaller norm or noise_multiplier")
        if self.share_variance and self.share_variance < 1:
            raise unfit("noise under one step: take a smaller clip")


def _root_up(value: int) -> int:
    root = isqrt(value)
    return root if root * root == value else root + 1


def unfit(what: str) -> SettingsError:
    """Return the error for a specification that does not fit."""
    return SettingsError(what, code="dp-plan", stage="dp")
