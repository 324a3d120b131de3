terraform import edge_cluster.main local/quickstart-1f2e3d4c
