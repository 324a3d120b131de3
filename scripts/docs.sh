#!/usr/bin/env bash
# Regenerates docs/ from the provider's schema, templates/ and examples/.
set -euo pipefail
cd "$(dirname "$0")/../tools"
go run ./cmd/docs "$@"
