package bench

import (
	"fmt"
	"os"
	"strings"
)

// LoadRow is how busy the machine was with other work before anything began; -1
// where that is unknown.
func LoadRow() Row {
	r := Row{Name: "load average of the machine as the run began", Unit: "runnable"}
	raw, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		_, err = fmt.Sscanf(string(raw), "%g", &r.Ours)
	}
	if err != nil {
		r.Ours = -1
	}
	return r
}

// Misses says of each aim that is missed by how much, a line each.
func Misses(rows []Row) string {
	var b strings.Builder
	for _, r := range rows {
		if r.Met == nil || *r.Met {
			continue
		}
		fmt.Fprintf(&b, "aim missed: %s: %.3g %s, the aim is %.3g", r.Name, r.Ours, r.Unit, *r.Aim)
		if *r.Aim != 0 {
			fmt.Fprintf(&b, " (%+.0f %%)", (r.Ours / *r.Aim - 1)*100)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
