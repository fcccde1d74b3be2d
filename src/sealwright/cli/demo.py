"""`sealwright demo`: the whole story on this machine, on a real language model, and the attacks on it."""

from __future__ import annotations

import json
import mmap
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from sealwright.cli._attack import Target
from sealwright.cli._attacks import ATTACKS
from sealwright.cli._group import Json
from sealwright.cli._output import plain
from sealwright.cli._relay import Relay
from sealwright.cli._search import files, search
from sealwright.cli._stand import KID, MODEL, Server, Stand, model_path, run
from sealwright.crypto.encoding import b64url_decode
from sealwright.errors import CollateralError, SettingsError, VerificationError

MARKER = ".sealwright-demo"
QUESTION = "Why is the sky blue? Answer in one short sentence."
TOKENS = 48


def command(
    folder: Annotated[
        Path, typer.Option("--dir", help="Folder of the demo; an earlier demo's is replaced.")
    ] = Path("sealwright-demo"),
    attack: Annotated[
        bool, typer.Option("--attacks/--no-attacks", help="Also attack what was built.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Tell the whole story on this machine, on a real language model.

    Seal a model, start a broker and an enclave, chat through the sealed channel, verify receipt and log
    offline, then attack each part. Nothing leaves this machine.
    """
    _prepare(folder)
    teller = Teller(quiet=as_json)
    stand = Stand(folder.resolve())
    try:
        told = Story(stand, teller).tell(attack=attack)
    finally:
        stand.stop()
    if as_json:
        typer.echo(json.dumps({"confidential": False, **told}, indent=2))


@dataclass
class Teller:
    """Prints one line a step: what was proved, how long it took, and where to look closer."""

    quiet: bool
    steps: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[..., None]]:
        """Time a step; the block calls what it is given with the line to print and a command to look closer."""
        began = time.monotonic()
        said: list[tuple[str, str]] = []

        def proved(text: str, look: str = "") -> None:
            said.append((text, look))

        yield proved
        seconds = time.monotonic() - began
        for text, look in said:
            self.steps.append({"step": title, "proved": text, "look": look, "seconds": round(seconds, 2)})
            self.line(f"{title:<9} {text}  ({seconds:.1f} s)")
            if look:
                self.line(f"{'':<9}   $ {_typed(look)}")

    def line(self, text: str = "") -> None:
        """Print a line for people."""
        if not self.quiet:
            typer.echo(plain(text))

    def stream(self, text: str) -> None:
        """Print a piece of an answer as it comes."""
        if not self.quiet:
            typer.echo(plain(text.replace("\n", " ")), nl=False)


class Story:
    """DESIGN's one story, step by step."""

    def __init__(self, stand: Stand, teller: Teller) -> None:
        self.stand, self.teller = stand, teller
        self.where = _shown(stand.folder)

    def tell(self, *, attack: bool) -> dict[str, Any]:
        """Run all steps; return what they found."""
        line = self.teller.line
        line(f"Sealwright on {platform.system()} {platform.release()}, platform `software`: a stand-in that")
        line("protects from other users and processes of this machine, NOT from its administrators.")
        line()
        target = self.build()
        planted = planted_secrets(self.stand, self.answer)
        found: dict[str, Any] = {"answer": self.answer, "claims": self.claims}
        if attack:
            line()
            found["attacks"] = self.attack(target)
        self.secrecy(target, planted)
        target.relay.close()
        line()
        line(f"Everything is in {self.where}. To see it again offline:")
        again = f"sealwright verify {self.where}/receipt.json --trust {self.where}/hospital.trust"
        line(f"  $ {_typed(again)}")
        return {**found, "folder": str(self.stand.folder), "steps": self.teller.steps}

    def build(self) -> Target:
        """Run every step but the attacks; return what they can be tried on."""
        self.broker()
        self.model()
        enclave = self.enclave()
        relay = Relay(enclave.url)
        self.chat(relay)
        self.audit()
        return Target(stand=self.stand, enclave=enclave, relay=relay, nonce=self.nonce)

    def broker(self) -> None:
        """The key owner's broker and its log."""
        with self.teller.step("broker") as proved:
            self.stand.make_broker()
            proved(
                f"root {self.stand.root[:12]}…, every decision logged before it is answered",
                f"sealwright log show {self.where}/broker/log",
            )

    def model(self) -> None:
        """Seal the model under a key that the broker made, and say who may have it."""
        stand, where = self.stand, self.where
        source = model_path()
        with self.teller.step("seal") as proved:
            stand.seal_model(source)
            size = source.stat().st_size / 1e6
            proved(
                f"{MODEL}, {size:.0f} MB, under a key made inside the broker; its manifest is signed",
                f"ls -l {where}/{stand.sealed.name}",
            )
        with self.teller.step("policy") as proved:
            stand.admit_config()
            stand.add_caller()
            stand.make_trust()
            proved(
                f"the key goes only to code {stand.code[:12]}… under config {stand.config_digest[:12]}…",
                f"cat {where}/key-policy.yaml {where}/enclave-config.json",
            )

    def enclave(self) -> Server:
        """Start the enclave: measured, attested, leased, the model opened straight into memory."""
        with self.teller.step("enclave") as proved:
            server = self.stand.start_enclave(self.stand.enclave_config)
            server.wait_for()
            self.claims = server.said()["claims"]
            proved(
                "measured from outside, attested, has the key under a lease, model in sealed memory only",
                f"sealwright enclave measure {self.where}/enclave-config.json",
            )
        said = ", ".join(f"{name} {value}" for name, value in self.claims.items())
        self.teller.line(f"{'':<9}   {said}")
        return server

    def chat(self, relay: Relay) -> None:
        """A stock OpenAI client, with our transport: verify, seal, stream."""
        from openai import OpenAI

        import sealwright

        stand = self.stand
        credential = (stand.folder / "app.credential").read_text().strip()
        with self.teller.step("client") as proved:
            bundle = stand.folder / "attestation.json"
            trust = stand.folder / "hospital.trust"
            seen = stand.do("attest", "--url", relay.url, "--trust", trust, "--out", bundle)
            self.nonce = str(seen["nonce"])
            proved(
                "evidence, config, keys and lease verified against hospital.trust, with a fresh nonce",
                f"sealwright verify {self.where}/attestation.json --trust {self.where}/hospital.trust"
                f" --nonce {self.nonce}",
            )
        with self.teller.step("chat") as proved:
            transport = sealwright.http_client(trust=trust)
            with OpenAI(base_url=f"{relay.url}/v1", api_key=credential, http_client=transport) as client:
                stream = client.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": QUESTION}],
                    max_tokens=TOKENS,
                    temperature=0,
                    stream=True,
                )
                self.answer = self._shown(stream)
                receipt = sealwright.receipt(stream)
            (stand.folder / "receipt.json").write_bytes(receipt.file.encode())
            proved("the answer came through ML-KEM-768+X25519 and AES-256-GCM, token by token")

    def _shown(self, stream: Any) -> str:
        self.teller.line(f"{'':<9} > {QUESTION}")
        self.teller.stream(f"{'':<9} < ")
        pieces = []
        for chunk in stream:
            piece = (chunk.choices[0].delta.content or "") if chunk.choices else ""
            pieces.append(piece)
            self.teller.stream(piece)
        self.teller.line()
        return "".join(pieces)

    def audit(self) -> None:
        """Receipt and log, verified offline from files."""
        stand, where = self.stand, self.where
        receipt, trust = stand.folder / "receipt.json", stand.folder / "hospital.trust"
        with self.teller.step("receipt") as proved:
            fetch_proof(stand, receipt)
            said = stand.do("receipt", "verify", receipt, "--trust", trust)
            proved(
                f"receipt {str(said['receipt_id'])[:12]}…: signed by the attested keys, its fields committed, logged",
                f"sealwright receipt verify {where}/receipt.json --trust {where}/hospital.trust",
            )
        with self.teller.step("log") as proved:
            log = stand.broker_dir / "log"
            checked = stand.do("log", "verify", log, "--key", stand.log_key)
            proved(
                f"all {checked['size']} entries, every tile and the signed root re-verified",
                f"sealwright log verify {where}/broker/log --key {stand.log_key}",
            )

    def attack(self, target: Target) -> list[dict[str, Any]]:
        """Attack each part; every one has to end in the refusal that is documented for it."""
        results = []
        for attack in ATTACKS:
            began = time.monotonic()
            by, code, exit_code = attack.run(target)
            seconds = time.monotonic() - began
            results.append({"attack": attack.title, "code": code, "exit": exit_code, "by": by})
            self.teller.line(f"attack    {attack.title:<42} refused by {by}: {code}  ({seconds:.1f} s)")
        return results

    def secrecy(self, target: Target, planted: Mapping[str, bytes]) -> None:
        """Search everything that was written and sent for what was secret."""
        with self.teller.step("secrecy") as proved:
            found = search(planted, everything(target))
            if found:
                text = f"plaintext found: {'; '.join(found)}"
                raise VerificationError(text, code="plaintext-found", stage="secrecy")
            size = len(target.relay.recorded) + len(self.stand.wire.recorded)
            proved(
                "no question, answer, credential, weights or key in any file, log line, "
                f"or the {size} bytes on the wire"
            )


def everything(target: Target) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of all that was written and sent, but for the caller's own copy of the credential.

    Where no tmpfs may be mounted the enclave's image stands in a folder: public code, this module with its
    question included, which was measured before it was written.
    """
    yield "the wire before the enclave", target.relay.recorded
    yield "the wire before the broker", target.stand.wire.recorded
    images = target.stand.folder.rglob("sealed-*/root")
    yield from files(target.stand.folder, but=[target.stand.folder / "app.credential", *images])


def planted_secrets(stand: Stand, answer: str) -> dict[str, bytes]:
    """Return what must be found nowhere: name -> bytes. The key comes to its owner by the owner's own route."""
    from sealwright.client.admin import fetch_sealing_key

    token = Path(stand.made["admin_token"]).read_text().strip()
    key = fetch_sealing_key(stand.broker_url, token, KID, root=b64url_decode(stand.root))
    with model_path().open("rb") as file:
        weights = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        starts = [len(weights) * at // 7 for at in range(1, 7)]
        windows = {f"the weights at {start}": weights[start : start + 48] for start in starts}
    return {
        "the question": QUESTION.encode(),
        "the answer": answer.encode(),
        "the credential": (stand.folder / "app.credential").read_bytes().strip(),
        "the model's key": key,
        **windows,
    }


def fetch_proof(stand: Stand, receipt: Path) -> None:
    """Wait until the answer's receipt is logged, and put the proof into its file."""
    end = time.monotonic() + 30
    while run("receipt", "proof", receipt, "--url", stand.broker_url).exit_code:
        if time.monotonic() > end:
            raise CollateralError("the receipt was not logged in 30 s", code="proof-missing", stage="log")
        time.sleep(0.1)


def _prepare(folder: Path) -> None:
    """Make an empty folder; replace only what an earlier demo made."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        text = f"{folder} is not empty and not an earlier demo; name another with --dir"
        raise SettingsError(text, code="folder-not-empty", stage="setup")
    model_path()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    (folder / MARKER).touch()


def _typed(command: str) -> str:
    """Return a command as it is typed here: by its path where the shell would not find this `sealwright`."""
    own = Path(sys.executable).with_name("sealwright")
    found = shutil.which("sealwright")
    if not own.exists() or (found is not None and Path(found).resolve() == own.resolve()):
        return command
    return (
        command.replace("sealwright ", f"{_shown(own)} ", 1) if command.startswith("sealwright ") else command
    )


def _shown(folder: Path) -> str:
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)
