// Package quickstart is a Kubernetes cluster with two sites behind NAT, on this
// machine.
package quickstart

import (
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi/config"

	"github.com/edgewright/terraform-provider-edge/bridge/sdk/go/edge"
)

// Deploy declares everything.
func Deploy(ctx *pulumi.Context) error {
	tokyoReplicas := 1
	if n, err := config.New(ctx, "").TryInt("tokyoReplicas"); err == nil {
		tokyoReplicas = n
	}

	cluster, err := edge.NewCluster(ctx, "quickstart", &edge.ClusterArgs{
		Name:    pulumi.String("quickstart"),
		Version: pulumi.String("1.36.3"),
		Local:   edge.ClusterLocalArgs{},
	})
	if err != nil {
		return err
	}

	pools := map[string]*edge.NodePool{}
	for _, site := range []string{"berlin", "tokyo"} {
		pools[site], err = edge.NewNodePool(ctx, site, &edge.NodePoolArgs{
			ClusterId: cluster.ID(),
			Name:      pulumi.String(site),
			Labels:    pulumi.StringMap{"example.com/site": pulumi.String(site)},
		})
		if err != nil {
			return err
		}
	}

	var nodes []pulumi.Resource
	for _, n := range []struct{ name, site string }{
		{"berlin-1", "berlin"}, {"berlin-2", "berlin"}, {"tokyo-1", "tokyo"},
	} {
		node, err := edge.NewNode(ctx, n.name, &edge.NodeArgs{
			ClusterId: cluster.ID(),
			Pool:      pools[n.site].Name,
			Name:      pulumi.String(n.name),
			Local:     edge.NodeLocalArgs{},
		})
		if err != nil {
			return err
		}
		nodes = append(nodes, node)
	}

	_, err = edge.NewUnitDeployment(ctx, "web", &edge.UnitDeploymentArgs{
		ClusterId: cluster.ID(),
		Name:      pulumi.String("web"),
		Namespace: pulumi.String("default"),
		Template: edge.UnitDeploymentTemplateArgs{
			Containers: edge.UnitDeploymentContainerMap{
				"web": edge.UnitDeploymentContainerArgs{
					Image: pulumi.String("registry.k8s.io/e2e-test-images/agnhost:2.63.0"),
					Args:  pulumi.ToStringArray([]string{"netexec", "--http-port=8080"}),
					Ports: edge.UnitDeploymentContainerPortMap{
						"http": edge.UnitDeploymentContainerPortArgs{Port: pulumi.Int(8080)},
					},
				},
			},
		},
		Pools: edge.UnitDeploymentPoolMap{
			"berlin": edge.UnitDeploymentPoolArgs{
				Replicas: pulumi.Int(2),
				Env:      pulumi.StringMap{"SITE": pulumi.String("berlin")},
			},
			"tokyo": edge.UnitDeploymentPoolArgs{
				Replicas: pulumi.Int(tokyoReplicas),
				Env:      pulumi.StringMap{"SITE": pulumi.String("tokyo")},
			},
		},
		Service: edge.UnitDeploymentServiceArgs{
			Ports: edge.UnitDeploymentServicePortMap{
				"http": edge.UnitDeploymentServicePortArgs{Port: pulumi.Int(80), TargetPort: pulumi.String("http")},
			},
		},
	}, pulumi.DependsOn(nodes))
	if err != nil {
		return err
	}

	ctx.Export("clusterId", cluster.ID())
	ctx.Export("kubeconfig", cluster.Kubeconfig)
	return nil
}
