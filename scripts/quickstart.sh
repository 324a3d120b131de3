#!/usr/bin/env bash
# Applies examples/quickstart and shows what one can do with it. Leaves it
# running. Its working directory is kept beside the state directory, so that
# quickstart-destroy finds the terraform state again.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
terraform=$("$root/scripts/terraform.sh")
work=$(state_dir)/quickstart
mkdir -p "$work"
chmod 700 "$(state_dir)" "$work"
cp "$root"/examples/quickstart/*.tf "$work/"
use_built_provider "$work"
echo "$terraform" > "$work/terraform-program"

step() { printf '\n== %s\n' "$*"; }

step "programs and images of Kubernetes 1.36.3 (built once, then kept in the cache)"
"$root/bin/edge" component fetch

step "terraform apply ($("$terraform" version | head -n 1))"
cd "$work"
# The plugin just built may differ from the one locked by an earlier run.
rm -f .terraform.lock.hcl
"$terraform" init -input=false -no-color > init.log || { cat init.log; exit 1; }
"$terraform" apply -input=false -auto-approve

edge=$(state_dir)/bin/edge
k() { "$edge" kubectl -c quickstart "$@"; }

step "nodes"
k get nodes -o wide
step "pods"
k get pods -o wide
step "a log line of the pod in tokyo, through the tunnel"
k logs deploy/web-tokyo --tail=1
step "an exec in the pod in tokyo, through the tunnel"
k exec deploy/web-tokyo -- hostname
k exec deploy/web-tokyo -- env | grep ^SITE=

printf '\nIt is left running. `make quickstart-destroy` removes it.\n'
