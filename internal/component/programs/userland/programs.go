package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// cat writes files, or standard input, to standard output.
func cat(args []string) error {
	if len(args) == 0 {
		args = []string{"-"}
	}
	for _, name := range args {
		if name == "-" {
			if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
				return err
			}
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, f)
		f.Close() // read only
		if err != nil {
			return err
		}
	}
	return nil
}

func echo(args []string) error {
	_, err := fmt.Println(strings.Join(args, " "))
	return err
}

// env prints the environment, sorted.
func env(args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("takes no arguments")
	}
	all := os.Environ()
	slices.Sort(all)
	_, err := fmt.Println(strings.Join(all, "\n"))
	return err
}

func hostname(args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("takes no arguments")
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	_, err = fmt.Println(name)
	return err
}

// ls lists names, one a line; -l adds mode, size and time, -a those with a dot.
func ls(args []string) error {
	long, all := false, false
	var paths []string
	for _, a := range args {
		if !strings.HasPrefix(a, "-") {
			paths = append(paths, a)
			continue
		}
		for _, flag := range a[1:] {
			switch flag {
			case 'l':
				long = true
			case 'a':
				all = true
			case '1':
			default:
				return fmt.Errorf("unknown option -%c: -l, -a and -1 are known", flag)
			}
		}
	}
	if len(paths) == 0 {
		paths = []string{"."}
	}
	w := bufio.NewWriter(os.Stdout)
	show := func(info os.FileInfo, name string) {
		if long {
			fmt.Fprintf(w, "%s %12d %s ", info.Mode(), info.Size(), info.ModTime().UTC().Format(time.RFC3339))
		}
		fmt.Fprintln(w, name)
	}
	for _, p := range paths {
		info, err := os.Lstat(p)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			show(info, p)
			continue
		}
		entries, err := os.ReadDir(p)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !all && strings.HasPrefix(e.Name(), ".") {
				continue
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			show(info, e.Name())
		}
	}
	return w.Flush()
}

// sleep takes seconds, a Go duration, or "infinity".
func sleep(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("takes one argument: seconds, a duration such as 5m, or infinity")
	}
	if args[0] == "infinity" {
		select {}
	}
	d, err := time.ParseDuration(args[0])
	if err != nil {
		if d, err = time.ParseDuration(args[0] + "s"); err != nil {
			return err
		}
	}
	time.Sleep(d)
	return nil
}
