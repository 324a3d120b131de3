resource "edge_node_pool" "berlin" {
  cluster_id = edge_cluster.main.id
  name       = "berlin"
  labels     = { region = "eu" }
  taints     = ["dedicated=edge:NoSchedule"]
  autonomy   = { duration = "72h" }  # of a cut; without it, of any length
  network    = { transport = "tcp" } # never UDP; without it, QUIC where that gets through
}
