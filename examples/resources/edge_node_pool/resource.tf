resource "edge_node_pool" "berlin" {
  cluster_id = edge_cluster.main.id
  name       = "berlin"
  labels     = { region = "eu" }
  taints     = ["dedicated=edge:NoSchedule"]
}
