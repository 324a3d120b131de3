resource "edge_node" "berlin" {
  for_each = toset(["berlin-1", "berlin-2"])

  cluster_id = edge_cluster.main.id
  pool       = edge_node_pool.berlin.name
  name       = each.key
  local      = {}

  on_destroy = {
    timeout = "2m"
  }
}
