terraform import 'edge_node.berlin["berlin-1"]' local/quickstart-1f2e3d4c/berlin-1
