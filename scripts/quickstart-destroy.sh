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
id=$("$terraform" output -raw cluster_id 2>/dev/null || true)
use_built_provider "$work"
"$terraform" destroy -input=false -auto-approve

uid=${id##*-}
if [ -n "$uid" ]; then
  "$root/scripts/leftovers.sh" "$uid"
fi
rm -rf "$work"
