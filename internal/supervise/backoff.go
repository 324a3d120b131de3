//go:build linux

package supervise

import "time"

const (
	// backoffFirst and backoffLast bound the wait before a restart: a hiccup is
	// over at once, and a program that cannot run costs little.
	backoffFirst = 100 * time.Millisecond
	backoffLast  = 10 * time.Second
	// backoffJitter keeps the programs of a machine that failed together from
	// coming back together: a delay is up to this share shorter or longer.
	backoffJitter = 0.25
	// healthyAfter is how long a program must have been ready for its earlier
	// failures to be forgotten.
	healthyAfter = 30 * time.Second
	// crashLoopFailures is the number of failures in a row that is called a
	// crash loop. At these delays it is reached about 1.5 s after the first
	// failure of a program that dies at once.
	crashLoopFailures = 5
)

// backoff returns the wait before the next start after failures (≥ 1) in a row.
// random is in [0,1).
func backoff(failures int, random float64) time.Duration {
	delay := backoffFirst
	for i := 1; i < failures && delay < backoffLast; i++ {
		delay *= 2
	}
	factor := 1 + backoffJitter*(2*random-1)
	return min(time.Duration(float64(delay)*factor), backoffLast)
}
