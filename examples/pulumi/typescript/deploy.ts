import * as pulumi from "@pulumi/pulumi";
import * as edge from "@edgewright/edge";

/** A Kubernetes cluster with two sites behind NAT, on this machine. */
export async function deploy() {
    const tokyoReplicas = new pulumi.Config().getNumber("tokyoReplicas") ?? 1;

    const cluster = new edge.Cluster("quickstart", {
        name: "quickstart",
        version: "1.36.3",
        local: {},
    });

    const pools = Object.fromEntries(["berlin", "tokyo"].map(site => [site, new edge.NodePool(site, {
        clusterId: cluster.id,
        name: site,
        labels: { "example.com/site": site },
    })]));

    const nodes = Object.entries({ "berlin-1": "berlin", "berlin-2": "berlin", "tokyo-1": "tokyo" })
        .map(([name, site]) => new edge.Node(name, {
            clusterId: cluster.id,
            pool: pools[site].name,
            name: name,
            local: {},
        }));

    new edge.UnitDeployment("web", {
        clusterId: cluster.id,
        name: "web",
        namespace: "default",
        template: {
            containers: {
                web: {
                    image: "registry.k8s.io/e2e-test-images/agnhost:2.63.0",
                    args: ["netexec", "--http-port=8080"],
                    ports: { http: { port: 8080 } },
                },
            },
        },
        pools: {
            berlin: { replicas: 2, env: { SITE: "berlin" } },
            tokyo: { replicas: tokyoReplicas, env: { SITE: "tokyo" } },
        },
        service: {
            ports: { http: { port: 80, targetPort: "http" } },
        },
    }, { dependsOn: nodes });

    return { clusterId: cluster.id, kubeconfig: cluster.kubeconfig };
}
