package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// tarOptions are the options of `tar`, as far as kubectl and people use them.
type tarOptions struct {
	mode     byte   // 'c', 'x' or 't'
	file     string // "-" for standard input or output
	dir      string // -C
	noOwner  bool   // --no-same-owner
	keepMode bool   // -p, --same-permissions
	touch    bool   // -m: do not restore times
	verbose  bool
	paths    []string
}

const tarUsage = "usage: tar -c|-x|-t [-f FILE] [-C DIR] [-m] [-p] [-o] [-v] [PATH …]"

// parseTar reads arguments with or without the leading dash of the first.
func parseTar(args []string) (tarOptions, error) {
	o := tarOptions{file: "-", dir: "."}
	if len(args) == 0 {
		return o, errors.New(tarUsage)
	}
	if !strings.HasPrefix(args[0], "-") {
		args = append([]string{"-" + args[0]}, args[1:]...)
	}
	value := func(i *int) (string, error) {
		*i++
		if *i >= len(args) {
			return "", errors.New("an option lacks its value; " + tarUsage)
		}
		return args[*i], nil
	}
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--":
			o.paths = append(o.paths, args[i+1:]...)
			i = len(args)
		case a == "--no-same-owner":
			o.noOwner = true
		case a == "--no-same-permissions":
			o.keepMode = false
		case a == "--same-permissions" || a == "--preserve-permissions":
			o.keepMode = true
		case strings.HasPrefix(a, "--directory="):
			o.dir = strings.TrimPrefix(a, "--directory=")
		case strings.HasPrefix(a, "--"):
			return o, fmt.Errorf("unknown option %s; %s", a, tarUsage)
		case strings.HasPrefix(a, "-") && a != "-":
			for _, c := range a[1:] {
				var err error
				switch c {
				case 'c', 'x', 't':
					if o.mode != 0 && o.mode != byte(c) {
						return o, errors.New("one of -c, -x, -t; " + tarUsage)
					}
					o.mode = byte(c)
				case 'f':
					o.file, err = value(&i)
				case 'C':
					o.dir, err = value(&i)
				case 'm':
					o.touch = true
				case 'p':
					o.keepMode = true
				case 'o':
					o.noOwner = true
				case 'v':
					o.verbose = true
				default:
					err = fmt.Errorf("unknown option -%c; %s", c, tarUsage)
				}
				if err != nil {
					return o, err
				}
			}
		default:
			o.paths = append(o.paths, a)
		}
	}
	if o.mode == 0 {
		return o, errors.New("one of -c, -x, -t; " + tarUsage)
	}
	return o, nil
}

func tarMain(args []string) (err error) {
	o, err := parseTar(args)
	if err != nil {
		return err
	}
	if o.mode == 'c' {
		out := os.Stdout
		if o.file != "-" {
			if out, err = os.Create(o.file); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, out.Close()) }()
		}
		return create(out, o)
	}
	in := os.Stdin
	if o.file != "-" {
		if in, err = os.Open(o.file); err != nil {
			return err
		}
		defer in.Close()
	}
	return read(in, o)
}

// create writes the paths, which are relative to -C, without a leading slash.
func create(w io.Writer, o tarOptions) error {
	if len(o.paths) == 0 {
		return errors.New("nothing to archive; " + tarUsage)
	}
	tw := tar.NewWriter(w)
	for _, p := range o.paths {
		root := p
		if !filepath.IsAbs(p) {
			root = filepath.Join(o.dir, p)
		}
		err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, file)
			if err != nil {
				return err
			}
			name := strings.TrimLeft(path.Join(filepath.ToSlash(p), filepath.ToSlash(rel)), "/")
			if name == "" {
				name = "."
			}
			return add(tw, file, name, d, o)
		})
		if err != nil {
			return err
		}
	}
	return tw.Close()
}

func add(tw *tar.Writer, file, name string, d fs.DirEntry, o tarOptions) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	if info.Mode()&(fs.ModeSocket|fs.ModeDevice|fs.ModeNamedPipe) != 0 {
		fmt.Fprintf(os.Stderr, "tar: %s: not a file, directory or link; left out\n", file)
		return nil
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(file); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name = name
	if info.IsDir() {
		h.Name += "/"
	}
	if o.verbose {
		fmt.Fprintln(os.Stderr, h.Name)
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	// A log that grows meanwhile must not spoil the archive.
	_, err = io.CopyN(tw, f, h.Size)
	return err
}

// read extracts or lists an archive. Files are opened below -C through os.Root,
// so no name and no link of the archive leads out of it.
func read(r io.Reader, o tarOptions) error {
	root, err := os.OpenRoot(o.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimLeft(path.Clean(h.Name), "/")
		if !selected(name, o.paths) {
			continue
		}
		if o.mode == 't' {
			if _, err := fmt.Println(h.Name); err != nil {
				return err
			}
			continue
		}
		if o.verbose {
			fmt.Fprintln(os.Stderr, h.Name)
		}
		if err := extract(root, tr, h, name, o); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

func selected(name string, paths []string) bool {
	if len(paths) == 0 {
		return true
	}
	for _, p := range paths {
		p = strings.TrimLeft(path.Clean(p), "/")
		if name == p || strings.HasPrefix(name, p+"/") {
			return true
		}
	}
	return false
}

func extract(root *os.Root, r io.Reader, h *tar.Header, name string, o tarOptions) error {
	if name == "" || name == "." {
		return nil
	}
	mode := h.FileInfo().Mode().Perm()
	if dir := path.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.MkdirAll(name, 0o755); err != nil {
			return err
		}
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(strings.TrimLeft(path.Clean(h.Linkname), "/"), name)
	default:
		return fmt.Errorf("type %q is not supported", h.Typeflag)
	}
	if o.keepMode {
		if err := root.Chmod(name, mode); err != nil {
			return err
		}
	}
	if !o.noOwner && os.Geteuid() == 0 {
		if err := root.Lchown(name, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	if !o.touch {
		return root.Chtimes(name, h.ModTime, h.ModTime)
	}
	return nil
}
