"""Whether a policy keeps a dropped build out for good: the `minimum_version` of its reference values. No I/O."""

from __future__ import annotations

from collections.abc import Iterator

from sealwright.appraisal.policy import KeyPolicy
from sealwright.appraisal.reference import MAX_REFERENCE_VALUES, ReferenceRule, ReferenceValues
from sealwright.crypto.canonical import canonical
from sealwright.crypto.dsse import Envelope
from sealwright.errors import AppraisalError, AppraisalFailure, SettingsError


def check_barred(current: KeyPolicy, retire: KeyPolicy) -> None:
    """Check that reference values which `retire` drops are below its `minimum_version`.

    Raises:
        AppraisalError: `rollout-old-not-barred`.
    """
    found = list(_unbarred(current, retire))
    if found:
        raise AppraisalError(found, stage="retire")


def _unbarred(current: KeyPolicy, retire: KeyPolicy) -> Iterator[AppraisalFailure]:
    for platform in type(current.platforms).model_fields:
        old, new = _rule(current, platform), _rule(retire, platform)
        if old is None or new is None:
            continue  # a platform that is no longer named, or names its registers itself
        kept = {(values.name, values.version) for values in _documents(new)}
        for values in _documents(old):
            if (values.name, values.version) not in kept and values.version >= new.minimum_version:
                text = (
                    f"{platform}: {values.name} {values.version} is dropped, and minimum_version is "
                    f"{new.minimum_version}: raise it above"
                )
                yield AppraisalFailure(text, code="rollout-old-not-barred")


def _rule(policy: KeyPolicy, platform: str) -> ReferenceRule | None:
    return getattr(getattr(policy.platforms, platform), "reference", None)


def _documents(rule: ReferenceRule) -> list[ReferenceValues]:
    """Return the documents without proof: whoever signs policies put them there."""
    envelopes = [Envelope.parse(canonical(value), error=SettingsError) for value in rule.values]
    return [
        ReferenceValues.parse(one.unverified_payload, limit=MAX_REFERENCE_VALUES, error=SettingsError)
        for one in envelopes
    ]
