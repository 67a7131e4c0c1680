#!/usr/bin/env bash
# Serves a tiny checkpoint on PORT. The toy server stands for yours; FAULT switches one of its faults on.
set -euo pipefail
python -m mtp_verify certify --make-checkpoint checkpoint > /dev/null
exec python -m mtp_verify.testing.server --checkpoint checkpoint/target --port "${PORT:-8000}" ${FAULT:+--fault "$FAULT"}
