"""The launcher: the process that measures, seals, starts, certifies and watches. Trusted, outside the workload.

It is started by `launch` as a process of its own, told what to do over one socket, and ends with the
workload. As root it stays root, the workload and the quoting process do not.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from sealwright import __version__
from sealwright.attester.local import AttesterSpec
from sealwright.attester.quoter import kernel, layout, swap
from sealwright.attester.quoter.authority import Authority
from sealwright.attester.quoter.image import Measurement, build_image, measured
from sealwright.attester.quoter.observe import boot_id, claims_of, process, require_untraced
from sealwright.attester.quoter.quoting import certificates, run_quoter
from sealwright.attester.quoter.seal import SealedRoot, seal
from sealwright.attester.quoter.start import Start, start_workload
from sealwright.attester.quoter.state import quoting_root
from sealwright.attester.quoter.users import own_ids
from sealwright.errors import SealwrightError, UnavailableError
from sealwright.evidence.software import QuoteBody

_MAX_FDS = 64
_MAX_CONFIG = 1 << 20  # bytes
_LAST_WORDS_S = 2  # a workload without a quoter has this long to end by itself
_HANDSHAKE_S = 60  # a workload imports its modules in this time


@dataclass(slots=True, kw_only=True)
class Job:
    """One workload and what belongs to it."""

    request: dict[str, Any]
    fds: list[int]  # config, payload, listener if any, extra ones
    uids: tuple[int, int]  # of workload and quoting process
    config: bytes
    measurement: Measurement
    sealed: SealedRoot
    quoter: int = 0  # pid
    workload: int = 0  # pid
    exit_code: int = 70

    @property
    def attester(self) -> AttesterSpec | None:
        """Where quotes come from; None: from us."""
        said = self.request["attester"]
        return None if said is None else AttesterSpec.from_json(said)


def main(control_fd: int) -> int:
    """Run one workload; returns its exit code."""
    control = socket.socket(fileno=control_fd)
    job = None
    try:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        require_untraced()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until there is a workload to hand it to
        job = _prepare(control)
        _start(job, control)
    except Exception as exc:  # noqa: BLE001 - told to the caller, who raises
        control.send(layout.failure(exc))
        return getattr(exc, "exit_code", 70)
    finally:
        if job is not None:
            _end(job)
    return job.exit_code


def _prepare(control: socket.socket) -> Job:
    message, fds, _, _ = socket.recv_fds(control, layout.PACKET, _MAX_FDS)
    for fd in fds:
        os.set_inheritable(fd, False)
    request = layout.unpacked(message)
    config = os.pread(fds[0], _MAX_CONFIG, 0)
    os.close(fds[0])
    fds[0] = kernel.memfd(config)  # ours, at its own offset: the caller cannot change what was measured
    image = build_image(request["entry"], request["distributions"])
    uids = own_ids()
    uid = uids[0]
    state = Path(request["state"])
    quoting_root(state, datetime.now(UTC))  # fail now if it cannot be used; the key is not kept
    sealed = seal(image, uid=uid, gid=uid, state=state)
    measurement = measured(image, config)
    return Job(request=request, fds=fds, uids=uids, config=config, measurement=measurement, sealed=sealed)


def _start(job: Job, control: socket.socket) -> None:
    """Start quoting process and workload, vouch for it, and watch until one of them ends."""
    pair = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
    quotes, quotes_theirs = socket.socketpair(*pair)
    connections, connections_theirs = socket.socketpair(*pair)
    authority, authority_theirs = socket.socketpair(*pair)
    guard = swap.guard()
    uid, quoter_uid = job.uids
    job.quoter = os.fork()
    if job.quoter == 0:
        for ours in (control, authority, quotes_theirs, connections_theirs):
            ours.close()
        run_quoter(authority_theirs, quotes, connections, quoter_uid, job.attester)
    authority_theirs.close()
    done = _start_workload(job, uid, quotes_theirs, connections_theirs)
    body = _introduce(job, quotes, done, guard)
    _appoint(authority, body, job)
    _await_running(quotes)
    authority.send(layout.OK)  # from here on, what the workload writes is for the quoting process
    quotes.close()
    connections.close()
    _ready(job, control, body)
    _watch(job, control, authority)


def _start_workload(job: Job, uid: int, quotes: socket.socket, connections: socket.socket) -> dict[str, bool]:
    listener = job.fds[2] if job.request["listener"] else None
    extra = job.fds[3 if job.request["listener"] else 2 :]
    start = Start(
        sealed=job.sealed,
        uid=uid,
        gid=uid,
        quotes=quotes.fileno(),
        connections=connections.fileno(),
        config=job.fds[0],
        payload=job.fds[1],
        listener=listener,
        extra=extra,
    )
    job.workload, done = start_workload(start)
    quotes.close()
    connections.close()
    for fd in job.fds:
        os.close(fd)
    signal.signal(signal.SIGTERM, lambda *_: _signal(job.workload, signal.SIGTERM))
    return done


def _introduce(job: Job, quotes: socket.socket, done: dict[str, bool], guard: str) -> QuoteBody:
    """Exchange hello and claims with the bootstrap, check from outside, and return what quotes will say."""
    hello = {
        "quoter": os.getpid(),
        "unshare": not done["namespaces"],
        "seccomp": done["seccomp"],
        "mlock": guard == "mlock",
        "listener": job.request["listener"],
        "extra_fds": job.request["extra_fds"],
        "platform": "software" if job.attester is None else job.attester.platform,
    }
    with _workload_answers():
        quotes.send(layout.packed(hello))
        stated = _answer(quotes)
    seen = process(job.workload)
    claims = claims_of(seen, stated, done, guard=guard, sealed_root=job.sealed.kind)
    if claims.swap == "reachable" and not job.request["allow_swap"]:
        raise UnavailableError(
            "this machine swaps and the workload cannot be kept out of it",
            code="swap-reachable",
            stage="start",
        )
    with _workload_answers():
        quotes.send(layout.packed(claims.to_json()))
    return QuoteBody(
        quoter=__version__,
        boot_id=boot_id(),
        start_time=seen.start_time,
        registers=(job.measurement.register0, job.measurement.register1),
        report_data=bytes(64),
        claims=claims,
        stated=tuple(sorted(stated)),
    )


def _appoint(authority: socket.socket, body: QuoteBody, job: Job) -> None:
    """Tell the quoting process what to say, and certify its key."""
    authority.send(layout.packed([body.encode().hex(), job.config.hex()]))
    if job.attester is None:
        _certify(authority, job)
    answer = authority.recv(layout.PACKET)
    if answer != layout.OK:
        layout.raise_failure(answer)


def _certify(channel: socket.socket, job: Job) -> bool:
    """Answer one public key with certificates; False when the quoting process has ended."""
    spki = channel.recv(layout.PACKET)
    if not spki:
        return False
    key = load_der_public_key(spki)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    now = datetime.now(UTC)
    root: Authority = quoting_root(Path(job.request["state"]), now)
    channel.send(certificates((root.certify(key, now), root.root), root.crl(now)))
    return True


def _await_running(quotes: socket.socket) -> None:
    """Wait until the workload's engines are forked and its last filter is on."""
    with _workload_answers():
        _answer(quotes)


def _answer(channel: socket.socket) -> Any:
    """Return the bootstrap's next message. A timeout of the socket would reach the quoting process too."""
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    if not waiting.poll(_HANDSHAKE_S * 1000):
        raise TimeoutError
    return layout.unpacked(channel.recv(layout.PACKET))


@contextlib.contextmanager
def _workload_answers() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as exc:
        raise UnavailableError(
            "the workload ended, or did not answer, before it was running; its last lines are above",
            code="workload-ended",
            stage="start",
        ) from exc


def _ready(job: Job, control: socket.socket, body: QuoteBody) -> None:
    listing = kernel.memfd(layout.packed(job.measurement.files))
    registers = [register.hex() for register in body.registers]
    answer = {"pid": job.workload, "registers": registers, "claims": body.claims.to_json()}
    socket.send_fds(control, [layout.OK + layout.packed(answer)], [listing])
    os.close(listing)


def _watch(job: Job, control: socket.socket, authority: socket.socket) -> None:
    """Certify again when asked; return when the workload, the quoting process or the caller has ended."""
    workload, quoter = os.pidfd_open(job.workload), os.pidfd_open(job.quoter)
    poll = select.poll()
    for fd in (workload, quoter, control.fileno(), authority.fileno()):
        poll.register(fd, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if ready & {workload, control.fileno()}:
            return
        if quoter in ready or not _certify(authority, job):
            ending = select.poll()  # both ends close when the workload ends by itself
            ending.register(workload, select.POLLIN)
            ending.poll(_LAST_WORDS_S * 1000)
            return


def _end(job: Job) -> None:
    """End both processes and let go of the sealed place."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the pid may soon be another process's
    if job.workload:
        status = _reap(job.workload)
        job.exit_code = os.waitstatus_to_exitcode(status)
        if job.exit_code < 0:
            job.exit_code = 128 - job.exit_code
    if job.quoter:
        _reap(job.quoter)
    job.sealed.close()


def _reap(pid: int) -> int:
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended == 0:
        _signal(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return status


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def run() -> NoReturn:
    """The launcher process: `control` is the first argument, the rest is the module search path."""
    try:
        code = main(int(sys.argv[1]))
    except SealwrightError as exc:
        code = exc.exit_code
    sys.exit(code)
