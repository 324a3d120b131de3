#!/usr/bin/env bash
# Regenerates Pulumi's schema from the provider and docs/, and from the schema the
# SDKs.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root/bridge"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
plugin=cmd/pulumi-resource-edge
log=$work/log
# The generator works out names anew from what they were, which the metadata keeps.
PULUMI_HOME=$work PULUMI_SKIP_UPDATE_CHECK=true \
  go run ./cmd/pulumi-tfgen-edge schema --skip-examples --out "$plugin" > "$log" 2>&1 || { cat "$log" >&2; exit 1; }
rm -f "$plugin/Pulumi.yaml"
go run ./cmd/gensdk -schema "$plugin/schema.json" -version "$VERSION" -out sdk
