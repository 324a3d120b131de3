#!/usr/bin/env bash
# Destroys the quickstart with the tool that applied it and proves that nothing
# of it is left: processes, mounts, namespaces, links, nftables tables, cgroups.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
work=$(state_dir)/quickstart
if [ ! -e "$work/terraform-program" ]; then
  echo "there is no quickstart in $(state_dir)"
  exit 0
fi
terraform=$(cat "$work/terraform-program")
cd "$work"
use_built_provider "$work"
# The plugin may have been built again since the apply that locked it.
rm -f .terraform.lock.hcl
"$terraform" init -input=false -no-color > init.log || { cat init.log; exit 1; }
id=$("$terraform" output -raw cluster_id 2>/dev/null || true)
if [ -z "$id" ]; then
  # An apply that never came to an output has the cluster in its state all the same.
  id=$("$terraform" show -json | grep -o '"id":"local/[^"/]*"' | head -n 1 | cut -d '"' -f 4 || true)
fi
"$terraform" destroy -input=false -auto-approve
if [ -n "$id" ]; then
  "$root/scripts/leftovers.sh" "${id##*-}"
else
  echo "the state named no cluster, so there was nothing to destroy"
fi
rm -rf "$work"
