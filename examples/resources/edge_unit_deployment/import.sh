terraform import edge_unit_deployment.web local/quickstart-1f2e3d4c/default/web
