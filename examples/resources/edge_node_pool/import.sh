terraform import edge_node_pool.berlin local/quickstart-1f2e3d4c/berlin
