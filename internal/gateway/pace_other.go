//go:build !unix

package gateway

import "time"

// processorTime is not known; gateways run on Linux.
func processorTime() time.Duration { return 0 }
