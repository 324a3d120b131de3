// Command userland is the few programs that images without a distribution need
// for daily work: `kubectl cp` calls tar, and a person in `kubectl exec` wants cat,
// ls and env. It is the one that the base name of its path says.
//
// It knows the options named in usage and refuses every other, rather than do
// something else than was asked for.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if name == "userland" && len(args) > 0 {
		name, args = args[0], args[1:]
	}
	programs := map[string]func([]string) error{
		"cat": cat, "echo": echo, "env": env, "hostname": hostname, "ls": ls, "sleep": sleep, "tar": tarMain,
	}
	run, ok := programs[name]
	if !ok {
		fmt.Fprintln(os.Stderr, "usage: userland cat|echo|env|hostname|ls|sleep|tar …")
		os.Exit(2)
	}
	if err := run(args); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}
