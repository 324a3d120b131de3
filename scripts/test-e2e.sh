#!/usr/bin/env bash
# Runs end-to-end tests against real clusters: one package after the other, for
# they share this machine's two or four cores.
#   test-e2e.sh <package pattern> ...
set -euo pipefail
# Packages of the module that it is called in.
# E2E_TIMEOUT: how long all of them may take.
export TF_ACC_TERRAFORM_PATH=${TF_ACC_TERRAFORM_PATH:-$("$(dirname "$0")/terraform.sh")}
exec go test -count=1 -p 1 -v -timeout "${E2E_TIMEOUT:-40m}" "$@"
