package gateway_test

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// Readers that stand still behind several nodes, none of which holds too much, do
// not keep others from the connection between two gateways.
func TestStalledReadersBlockNoGateway(t *testing.T) {
	inFleet(t, []string{"a", "b"}, func(t *testing.T, fl *fleet) {
		release := make(chan struct{})
		defer close(release)
		kubelet := func(c net.Conn) {
			first := make([]byte, 1)
			if _, err := io.ReadFull(c, first); err != nil {
				return
			}
			if first[0] == 'e' {
				echo(c)
				return
			}
			<-release // a copy into a container that reads nothing
		}
		var names []string
		for i := 0; len(names) < 19; i++ {
			name := fmt.Sprintf("n%d", i)
			if fl.list.Rank(name)[0].ID != "b" {
				continue
			}
			n := fl.join(name, kubelet, func(c *agent.Config) {
				c.CA, c.Gateways = fl.ca.Cert, []string{fl.members["b"].addr.String()}
			})
			if up := <-n.states; !up {
				t.Fatal("not connected")
			}
			names = append(names, name)
		}
		settle()
		a := fl.members["a"]
		var stalled []*tunneltest.PipeConn
		for _, name := range names[1:] {
			for range 30 { // 340 KiB each, below the 12 MiB of a node's session; 64 MiB of the link in all
				c := a.connected(name + ":10250")
				go c.Write(make([]byte, 1<<20))
				stalled = append(stalled, c)
			}
		}
		<-time.After(2 * time.Minute)
		for range 10 {
			start := time.Now()
			c := a.connected(names[0] + ":10250")
			io.WriteString(c, "e")
			roundTrip(t, c, make([]byte, 100<<10))
			if d := time.Since(start); d > time.Second {
				t.Fatalf("took %s beside stalled readers of other nodes", d)
			}
			c.Close()
		}
		for _, c := range stalled {
			c.Close()
		}
	})
}
