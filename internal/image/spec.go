package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// Spec describes an image of one layer.
type Spec struct {
	Name         string // full reference with a tag
	OS           string
	Architecture string
	Entrypoint   []string
	Command      []string
	Env          []string // "NAME=value"
	User         string   // "uid:gid"; empty for root
	WorkingDir   string
	Ports        []string // "80/tcp"
	Files        []File
}

// File is one file of an image's layer.
type File struct {
	Path string // relative, with slashes
	// Mode are the permission bits, and with 0o1000 the sticky bit.
	Mode uint32
	Dir  bool
	// Link is the target of a symbolic link.
	Link string
	// From is the path of the file on this machine whose content is taken.
	From string
	// Data is the content where the others are empty.
	Data []byte
}

// epoch is the time of everything in an image, so that the bytes depend on
// content only.
var epoch = time.Unix(0, 0).UTC()

// writeLayer writes the layer's tar: directories above each file come by
// themselves, entries are sorted, owner is root.
func writeLayer(w io.Writer, files []File) error {
	all := map[string]File{}
	for _, f := range files {
		if !fs.ValidPath(f.Path) || f.Path == "." {
			return fmt.Errorf("image file %q is not a clean relative path", f.Path)
		}
		if _, twice := all[f.Path]; twice {
			return fmt.Errorf("image has %s twice", f.Path)
		}
		all[f.Path] = f
	}
	for _, f := range files {
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			if d, ok := all[dir]; !ok {
				all[dir] = File{Path: dir, Dir: true, Mode: 0o755}
			} else if !d.Dir {
				return fmt.Errorf("image has %s below %s, which is no directory", f.Path, dir)
			}
		}
	}
	var names []string
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	tw := tar.NewWriter(w)
	for _, name := range names {
		if err := writeFile(tw, all[name]); err != nil {
			return fmt.Errorf("image file %s: %w", name, err)
		}
	}
	return tw.Close()
}

func writeFile(tw *tar.Writer, f File) (err error) {
	h := &tar.Header{Name: f.Path, Mode: int64(f.Mode), ModTime: epoch, Format: tar.FormatPAX}
	switch {
	case f.Dir:
		h.Typeflag, h.Name = tar.TypeDir, f.Path+"/"
		return tw.WriteHeader(h)
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
		return tw.WriteHeader(h)
	}
	h.Typeflag = tar.TypeReg
	var content io.Reader = bytes.NewReader(f.Data)
	h.Size = int64(len(f.Data))
	if f.From != "" {
		in, err := os.Open(f.From)
		if err != nil {
			return err
		}
		defer in.Close()
		info, err := in.Stat()
		if err != nil {
			return err
		}
		content, h.Size = in, info.Size()
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(tw, content)
	if err == nil && n != h.Size {
		err = fmt.Errorf("has %d bytes, expected %d", n, h.Size)
	}
	return err
}

// check refuses what would make an image that cannot run or cannot be named.
func (s Spec) check() error {
	if err := CheckReference(s.Name); err != nil {
		return err
	}
	if s.OS == "" || s.Architecture == "" {
		return fmt.Errorf("image %s has no platform", s.Name)
	}
	if len(s.Entrypoint)+len(s.Command) == 0 {
		return fmt.Errorf("image %s has nothing to run", s.Name)
	}
	return nil
}

// CheckReference accepts a full image reference as containerd stores it:
// host/path:tag in the characters that a registry allows.
func CheckReference(ref string) error {
	if len(ref) > 512 {
		return errors.New("image reference is longer than 512 characters")
	}
	slash, colon := strings.IndexByte(ref, '/'), strings.LastIndexByte(ref, ':')
	bad := slash <= 0 || colon <= slash+1 || colon == len(ref)-1
	for _, r := range ref {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("._-/:@", r):
		default:
			bad = true
		}
	}
	if bad {
		return fmt.Errorf("image reference %q is not of the form host/path:tag", ref)
	}
	return nil
}
