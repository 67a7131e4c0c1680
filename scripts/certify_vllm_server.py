"""Certify vLLM's server over HTTP: without speculation, with its n-gram drafts, with the plug-in.

`make vllm` runs this in the environment with vLLM's CPU build: one server after the other, each
with a tiny checkpoint, and `mtp-verify certify --url` against each. Exit code 1 if the law of the
server without speculation or with the plug-in is found to be another one, or if the stock server's
with sampled n-gram speculation is not.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": 2,
    "prompt_lookup_max": 2,
    "prompt_lookup_min": 1,
}
# Mode -> (speculation, environment, the verdict that is right).
MODES: dict[str, tuple[dict[str, Any] | None, dict[str, str], str]] = {
    "plain": (None, {}, "pass"),
    "ngram": (NGRAM, {}, "biased"),
    "plugin": (NGRAM, {"MTP_VERIFY_VLLM": "1"}, "pass"),
}
SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
START_SECONDS = 900
KEPT = ("verdict", "samples", "samples_needed", "total_variation", "requests_per_second", "seconds")


@contextmanager
def served(folder: Path, mode: str) -> Iterator[str]:
    """Serve a checkpoint; the address, once the server answers."""
    speculation, environment, _ = MODES[mode]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # By its module: the command `vllm` looks for a distribution of that name; this is vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "1024"]
    command += ["--enforce-eager", "--host", "127.0.0.1", "--port", str(port)]
    if speculation is not None:
        command += ["--speculative-config", json.dumps(speculation)]
    usual = {name: value for name, value in os.environ.items() if name != "MTP_VERIFY_VLLM"}
    # It answers in a process of its own, as in production.
    usual.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    server = subprocess.Popen(command, env=usual | SETTINGS | environment)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        end = time.monotonic() + START_SECONDS
        while not answers(url):
            if server.poll() is not None or time.monotonic() > end:
                message = f"{mode}: the server did not start"
                raise RuntimeError(message)
            time.sleep(1)
        yield url
    finally:
        server.terminate()
        server.wait()


def answers(url: str) -> bool:
    """Whether a server is there."""
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def main() -> int:
    """Certify each and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the reports go")
    parser.add_argument("--mode", action="append", choices=MODES, help="may be repeated")
    args = parser.parse_args()
    certify = [sys.executable, "-m", "mtp_verify", "certify"]
    found, is_right = {}, True
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*certify, "--make-checkpoint", folder], check=True)
        target = Path(folder) / "target"
        for mode in args.mode or MODES:
            with served(target, mode) as url:
                words = ["--url", url, "--checkpoint", str(target), "--horizon", "4", "--json"]
                done = subprocess.run([*certify, *words], stdout=subprocess.PIPE, check=False)
            document = json.loads(done.stdout)
            (case,) = document["certificates"]
            found[mode] = {name: case[name] for name in KEPT}
            found[mode]["beside_the_law"] = document["beside_the_law"]
            is_right &= case["verdict"] == MODES[mode][2]
            print(mode, found[mode]["verdict"], found[mode]["samples"], flush=True)
    args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
