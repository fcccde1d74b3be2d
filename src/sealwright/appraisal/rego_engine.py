"""Evaluates one Rego policy with regopy (rego-cpp). Knows nothing of attestation; see `sealwright.appraisal.rego`.

As a program it reads a job from stdin and writes the values to stdout, under limits of its own: for whoever wants the
engine in another process (`sealwright.client.rego_process`): it is native code without a limit of its own, and some
policies crash it (`r := x.f() if { x := 1 }`).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

Engine = Callable[[bytes], bytes]  # a job to values, both JSON; raises whatever went wrong

CPU_S = 2  # Trustee's own policies take some 0.02
MEMORY = 512 * 1024 * 1024  # bytes, resident
_POLL_S = 0.002
# A reference value that is not there is undefined: every comparison with it fails. Trustee's is null.
_REFERENCE = "package policy\nimport rego.v1\nquery_reference_value(name) := data.reference[name]\n"


def evaluate(job: bytes) -> bytes:
    """Return the values of rules, in this process.

    Args:
        job: JSON `{policy, input, reference, rules}`; `rules` are names in package `policy`.

    Returns:
        JSON, an object: the value of each rule, without those that are undefined.

    Raises:
        Exception: the policy does not compile, a rule conflicts with itself, or a built-in fails.
    """
    wanted = json.loads(job)
    regopy: Any = import_module("regopy")
    engine = regopy.Interpreter()
    engine.log_level = regopy.LogLevel.NONE
    engine.strict_built_in_errors = True
    engine.add_module("policy.rego", wanted["policy"])
    engine.add_module("sealwright.rego", _REFERENCE)
    # As JSON text, never as Python objects: that way false stays false.
    engine.add_data_json(json.dumps({"reference": wanted["reference"]}))
    engine.set_input_term(json.dumps(wanted["input"]))
    found = {rule: _value(engine.query(f"data.policy.{rule}")) for rule in wanted["rules"]}
    return json.dumps({rule: value[0] for rule, value in found.items() if value}).encode()


def _value(output: Any) -> list[Any]:
    """Return the one value of an answer; none: undefined."""
    if not output.ok():
        raise ValueError("the engine refused")
    text = str(output)
    if text == "undefined":
        return []
    value: list[Any] = json.loads(text)["expressions"]
    if len(value) != 1:
        raise ValueError("not one value")
    return value


def main() -> None:
    """Evaluate the job on stdin, under limits (on Windows there are none: the caller's time limit remains)."""
    with contextlib.suppress(ModuleNotFoundError):
        _limit(import_module("resource"))
    sys.stdout.buffer.write(evaluate(sys.stdin.buffer.read()))


def _limit(resource: Any) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    threading.Thread(target=_watch, args=(resource,), daemon=True).start()


def _watch(resource: Any) -> None:
    """End this process when it takes too much. The engine reserves 256 GiB at its start, so RLIMIT_AS would not do."""
    while _resident(resource) < MEMORY:
        time.sleep(_POLL_S)
    os._exit(1)


def _resident(resource: Any) -> int:
    """Return this process's resident memory, bytes; outside Linux the most that it has been."""
    if sys.platform == "linux":
        # Not `ru_maxrss`: it keeps the size of the process that started this one, across the exec.
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * int(resource.getpagesize())
    most: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    main()
