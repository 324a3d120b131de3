data "edge_node" "berlin" {
  cluster_id = edge_cluster.main.id
  name       = edge_node.berlin["berlin-1"].name
}

# A plan warns of a node that would not go on through a cut.
check "autonomy" {
  assert {
    condition     = data.edge_node.berlin.autonomy.ready
    error_message = "berlin-1: ${data.edge_node.berlin.autonomy.reason}"
  }
}
