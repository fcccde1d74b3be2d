"""Evidence of any platform, looked at offline: what was proved, by whom, until when, and what was not. No I/O.

Without a policy nothing is allowed; what no policy may be silent about (debug, old firmware, a foreign root) is a
failure all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from sealwright.appraisal.binding import ConfigBinding
from sealwright.appraisal.evidence import appraise_evidence, vtpm_bound
from sealwright.appraisal.platform import Appraisal, Rules, appraise, is_confidential
from sealwright.appraisal.policy import KeyPolicy, TrustFile
from sealwright.appraisal.rules import HardwareRules
from sealwright.audit.detect import Found, detect
from sealwright.audit.given import Given
from sealwright.client.rego_process import evaluate_apart
from sealwright.errors import AppraisalError, AppraisalFailure, EvidenceFormatError, VerificationError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.eventlog import EventLog
from sealwright.verify.context import Context
from sealwright.verify.eventlog import Layout, replay
from sealwright.verify.evidence import (
    REPORT_DATA_BYTES,
    read_event_log,
    unverified_device_nonce,
    unverified_report_data,
    verify_envelope_devices,
    verify_evidence,
    verify_vtpm,
)
from sealwright.verify.verified import Verified

_ANY = HardwareRules()  # admits no condition and no root but the vendor's


@dataclass(slots=True, kw_only=True)
class EvidenceReport:
    """What a file of evidence proves. `allowed` is None where no policy was there to judge by."""

    name: str  # for people: what the file is
    type: str
    at: datetime
    confidential: bool
    fresh: bool  # the expected report data, or nonce, was given and is in it
    allowed: bool | None
    genuine: Mapping[str, Verified]  # "cpu0", "vtpm0", "gpu0", …
    appraisals: Mapping[str, Appraisal]
    failures: tuple[AppraisalFailure, ...]
    not_checked: Sequence[str] = field(default_factory=tuple)  # beside freshness, and what needs a policy
    boot: Sequence[str] = field(default_factory=tuple)  # what booted, for people
    log_only: Mapping[str, bytes] = field(default_factory=dict)  # an event log alone: what it replays to

    def require(self) -> None:
        """Raise AppraisalError with every failure, if there is any."""
        if self.failures:
            raise AppraisalError(self.failures)


def check_evidence(
    raw: bytes,
    *,
    rules: KeyPolicy | TrustFile | None,
    at: datetime,
    given: Given,
    expected: bytes | None = None,
    kind: str | None = None,
    event_log: bytes | None = None,
    rules_at: datetime | None = None,
) -> EvidenceReport:
    """Report on a file of evidence, whatever platform it is of.

    Args:
        rules: what to appraise by; None: genuineness, and what no policy may be silent about.
        expected: 64 bytes that the quote must carry, or 32 that devices must answer; None: not judged.
        kind: one of `sealwright.audit.detect.TYPES`, where the caller knows.
        event_log: of the machine, where it came apart from the evidence.
        rules_at: when `rules` have to be in force, if not at `at`.

    Raises:
        EvidenceFormatError, VerificationError, RevokedError, CollateralError: not genuine, or not decidable.
    """
    found = detect(raw, kind)
    if found.event_log is not None:
        if rules is not None or expected is not None:
            raise EvidenceFormatError(
                "an event log alone is no evidence: bring the quote over the registers that it replays to",
                code="unknown-format",
            )
        return _log_alone(found.event_log, found.name, at)
    envelope = found.envelope
    if envelope is None:
        return _devices_alone(found, rules, at, given, expected)
    if expected is not None and len(expected) != REPORT_DATA_BYTES:
        raise VerificationError(
            f"report data has {REPORT_DATA_BYTES} bytes; a nonce is what a bundle, or a device alone, answers",
            code="report-data-mismatch",
            stage="report-data",
        )
    if event_log is not None:
        envelope = envelope.model_copy(update={"event_log": event_log, "runtime_log": None})
    checking = _Checking(
        envelope=envelope, rules=rules, at=at, rules_at=rules_at or at, given=given, expected=expected
    )
    return checking.report(found.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checking:
    envelope: EvidenceEnvelope
    rules: KeyPolicy | TrustFile | None
    at: datetime
    rules_at: datetime
    given: Given
    expected: bytes | None

    def report(self, name: str) -> EvidenceReport:
        genuine = self._genuine()
        main = genuine["cpu0"]
        appraisal = self._appraisal(genuine)
        failures = [*appraisal.failures, *self._config(appraisal)]
        return EvidenceReport(
            name=name,
            type=self.envelope.type,
            at=self.at,
            confidential=is_confidential(main),
            fresh=self.expected is not None,
            allowed=None if self.rules is None else not failures,
            genuine=genuine,
            appraisals={"cpu0": appraisal, **appraisal.parts},
            failures=tuple(failures),
            not_checked=tuple(self._not_checked(appraisal)),
            boot=self._boot(main),
        )

    def _rules(self, platform: str) -> Rules | None:
        return None if self.rules is None else self.rules.platforms.rules(platform, self.rules_at)

    def _context(self, platform: str) -> Context:
        given = Context(at=self.at, outage=self.given.outage)
        rules = self._rules(platform)
        return given if rules is None else rules.context(given)

    def _report_data(self) -> bytes:
        return unverified_report_data(self.envelope) if self.expected is None else self.expected

    def _bound(self) -> frozenset[str]:
        rules = self._rules(self.envelope.type)
        return frozenset() if rules is None else rules.bound

    def _genuine(self) -> dict[str, Verified]:
        found: dict[str, Verified] = {
            "cpu0": verify_evidence(
                self.envelope,
                expected_report_data=self._report_data(),
                context=self._context(self.envelope.type),
                collateral=self.given.collateral,
                bound=self._bound(),
            )
        }
        if self.envelope.vtpm is not None:
            found["vtpm0"] = verify_vtpm(
                self.envelope.vtpm,
                expected_report_data=self._report_data(),
                context=self._context("vtpm"),
                collateral=self.given.collateral,
                bound=vtpm_bound(self._rules("vtpm"), self._rules(self.envelope.type)),
            )
        devices = verify_envelope_devices(
            self.envelope.devices,
            expected_nonce=unverified_device_nonce(self.envelope.devices),
            context=self._context("nvgpu"),
            collateral=self.given.collateral,
        )
        return found | {f"gpu{slot}": device for slot, device in enumerate(devices)}

    def _appraisal(self, genuine: Mapping[str, Verified]) -> Appraisal:
        if self.rules is not None:
            return appraise_evidence(
                self.envelope,
                self.rules,
                expected_report_data=self._report_data(),
                at=self.at,
                rules_at=self.rules_at,
                expected_device_nonce=unverified_device_nonce(self.envelope.devices),
                collateral=self.given.collateral,
                rego=evaluate_apart,
            )
        parts = {name: _without_policy(one) for name, one in genuine.items()}
        main = parts.pop("cpu0")
        failures = [*main.failures, *(failure for part in parts.values() for failure in part.failures)]
        return replace(main, failures=tuple(failures), parts=parts)

    def _config(self, appraisal: Appraisal) -> tuple[AppraisalFailure, ...]:
        """Judge the config by its digest; rules about what it names need the config itself."""
        digests = [] if self.rules is None else self.rules.config.digests
        register = appraisal.config.register
        if not digests or not register or any(_holds(appraisal.config, digest) for digest in digests):
            return ()
        text = f"register {register} holds no config that the policy lists"
        return (AppraisalFailure(text, code="config-not-allowed"),)

    def _not_checked(self, appraisal: Appraisal) -> Iterator[str]:
        if self.rules is not None and not appraisal.config.register:
            yield "config (the policy names no register that holds it: no broker would release a key)"
        elif self.rules is not None and not self.rules.config.digests:
            yield "config (its digest alone does not say what it names)"
        if self.envelope.devices and self.expected is not None:
            yield "freshness of devices (what they answered is not the report data)"

    def _boot(self, main: Verified) -> Sequence[str]:
        account = read_event_log(main, self.envelope, self._bound())
        return () if account is None else account.lines()


def _holds(config: ConfigBinding, digest: bytes) -> bool:
    try:
        config.check(digest, stage="config")
    except VerificationError:
        return False
    return True


def _without_policy(verified: Verified) -> Appraisal:
    if verified.platform == "software":
        # It has no conditions: all of it is one, and the result says so.
        return replace(appraise(verified, None, require_hardware=False), failures=())
    found = appraise(verified, _ANY, require_hardware=False)
    # Without a policy nobody names any code; that it was not checked is said elsewhere.
    return replace(found, failures=tuple(one for one in found.failures if one.code != "no-code-named"))


def _devices_alone(
    found: Found, rules: KeyPolicy | TrustFile | None, at: datetime, given: Given, expected: bytes | None
) -> EvidenceReport:
    gpus = None if rules is None else rules.platforms.nvgpu
    own = None if gpus is None else gpus.prepared("nvgpu", at, engine=evaluate_apart)
    context = Context(at=at, outage=given.outage)
    devices = verify_envelope_devices(
        found.devices,
        expected_nonce=unverified_device_nonce(found.devices) if expected is None else expected,
        context=context if own is None else own.context(context),
        collateral=given.collateral,
    )
    genuine = {f"gpu{slot}": device for slot, device in enumerate(devices)}
    appraisals = {
        name: _without_policy(one) if rules is None else appraise(one, own, require_hardware=False)
        for name, one in genuine.items()
    }
    failures = [failure for one in appraisals.values() for failure in one.failures]
    failures += [] if own is None else own.device_refusals(devices)
    if rules is not None and rules.platforms.model_fields_set - {"nvgpu"}:
        text = "the policy is of machines, and this is evidence of devices alone"
        failures.append(AppraisalFailure(text, code="platform-not-allowed"))
    return EvidenceReport(
        name=found.name,
        type=devices[0].platform,
        at=at,
        confidential=False,  # a GPU alone says nothing about the machine it is in
        fresh=expected is not None,
        allowed=None if rules is None else not failures,
        genuine=genuine,
        appraisals=appraisals,
        failures=tuple(dict.fromkeys(failures)),
    )


def _log_alone(raw: bytes, name: str, at: datetime) -> EvidenceReport:
    log = EventLog.parse(raw)
    if not log.events:
        raise EvidenceFormatError("an event log without events", code="malformed-event-log")
    return EvidenceReport(
        name=name,
        type="event-log",
        at=at,
        confidential=False,
        fresh=False,
        allowed=None,
        genuine={},
        appraisals={},
        failures=(),
        boot=("nothing is proved: a log counts only with a quote over the registers that it replays to",),
        log_only=_replayed(log),
    )


def _replayed(log: EventLog) -> dict[str, bytes]:
    bank = "sha256" if "sha256" in log.banks else log.banks[0]
    layout: Layout = "rtmr" if list(log.banks) == ["sha384"] else "pcr"
    return replay(log, layout=layout, bank=bank)
