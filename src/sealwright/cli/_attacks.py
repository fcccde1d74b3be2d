"""The catalogue: attacks on a running installation, and the refusal documented for each.

The demo and the tests run it; docs/reference/attacks.md shows it, with the attacks that only the tests run.
"""

from __future__ import annotations

from sealwright.cli import _attacks_enclave as enclave
from sealwright.cli import _attacks_network as network
from sealwright.cli import _attacks_records as records
from sealwright.cli._attack import Attack, Refusal

_BY_KERNEL = Refusal("kernel", "permission denied", 0)
_PATH = "chunk-open-failed"

# In an order that leaves the installation usable for the next one.
ATTACKS = (
    Attack("a captured request sent again", network.replayed_request, Refusal("enclave", "replayed", 10)),
    Attack("one bit of an answer flipped under way", network.altered_answer, Refusal("client", _PATH, 10)),
    Attack("two pieces of an answer swapped", network.reordered_answer, Refusal("client", _PATH, 10)),
    Attack("one piece of an answer sent twice", network.repeated_piece, Refusal("client", _PATH, 10)),
    Attack("an answer cut short", network.cut_answer, Refusal("client", "outcome-unknown", 69)),
    Attack(
        "one line of the enclave's code changed",
        enclave.changed_code,
        Refusal("broker", "code-not-allowed", 11),
    ),
    Attack("one host more to send data to", enclave.egress_host, Refusal("broker", "config-not-allowed", 11)),
    Attack("another engine configuration", enclave.other_engine, Refusal("broker", "config-not-allowed", 11)),
    Attack(
        "a second broker in the config", enclave.second_broker, Refusal("broker", "config-not-allowed", 11)
    ),
    Attack(
        "a rogue broker with keys of its own",
        enclave.rogue_broker,
        Refusal("enclave", "untrusted-signer", 10),
    ),
    Attack(
        "the same enclave on a machine not named",
        enclave.unknown_machine,
        Refusal("broker", "quoting-root-not-allowed", 11),
    ),
    Attack("one bit of the sealed model flipped", enclave.flipped_bit, Refusal("enclave", "bad-segment", 10)),
    Attack(
        "another model under the same name",
        enclave.substituted_model,
        Refusal("enclave", "manifest-not-admitted", 10),
    ),
    Attack("an older version of the model", enclave.older_model, Refusal("broker", "manifest-mismatch", 11)),
    Attack("a debugger, run by the enclave's own user", enclave.debugger, _BY_KERNEL),
    Attack(
        "old evidence for a new nonce", records.stale_nonce, Refusal("client", "report-data-mismatch", 10)
    ),
    Attack(
        "own keys put under a genuine quote",
        records.swapped_keyset,
        Refusal("client", "report-data-mismatch", 10),
    ),
    Attack(
        "this stand-in passed off as hardware",
        records.require_hardware,
        Refusal("client", "hardware-required", 11),
    ),
    Attack("one word of a receipt forged", records.forged_receipt, Refusal("auditor", "bad-signature", 10)),
    Attack(
        "a field's opening moved to another field",
        records.moved_field,
        Refusal("auditor", "field-mismatch", 10),
    ),
    Attack("one byte of the log edited", records.edited_log, Refusal("auditor", "log-entry-edited", 10)),
    Attack(
        "the last entry of the log deleted", records.shortened_log, Refusal("auditor", "malformed-bundle", 65)
    ),
    Attack("the log of an hour ago", records.older_log, Refusal("auditor", "log-rolled-back", 10)),
    Attack(
        "another history under the log's own key", records.forked_log, Refusal("auditor", "log-forked", 10)
    ),
    Attack(
        "yesterday's broker database restored",
        records.restored_database,
        Refusal("broker", "state-rolled-back", 10),
    ),
)
