package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Annotations of a descriptor in an archive's index.
const (
	// annotationName is the full reference; containerd's import names the image so.
	annotationName = "io.containerd.image.name"
	// annotationTag is the tag alone (OCI image specification, annotations).
	annotationTag = "org.opencontainers.image.ref.name"
)

// fileLayer is an uncompressed layer in a file. Compression would depend on the
// compressor's version, and the archive is imported from local disk anyway.
type fileLayer struct {
	path string
	hash v1.Hash
	size int64
}

func (l fileLayer) Digest() (v1.Hash, error)             { return l.hash, nil }
func (l fileLayer) DiffID() (v1.Hash, error)             { return l.hash, nil }
func (l fileLayer) Compressed() (io.ReadCloser, error)   { return os.Open(l.path) }
func (l fileLayer) Uncompressed() (io.ReadCloser, error) { return os.Open(l.path) }
func (l fileLayer) Size() (int64, error)                 { return l.size, nil }
func (l fileLayer) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }

// WriteArchive makes the archive of one image. The same spec with the same files
// gives the same bytes. A failure leaves no file.
func WriteArchive(to string, spec Spec) (err error) {
	if err := spec.check(); err != nil {
		return err
	}
	layer, err := makeLayer(filepath.Dir(to), spec.Files)
	if layer.path != "" {
		defer func() { err = errors.Join(err, os.Remove(layer.path)) }()
	}
	if err != nil {
		return err
	}
	img, err := assemble(spec, layer)
	if err != nil {
		return fmt.Errorf("assemble image %s: %w", spec.Name, err)
	}
	out, err := os.CreateTemp(filepath.Dir(to), ".image-*")
	if err != nil {
		return err
	}
	err = writeLayout(out, spec, img, layer)
	if err == nil {
		err = out.Chmod(0o644)
	}
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(out.Name(), to)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write archive of %s: %w", spec.Name, err), os.Remove(out.Name()))
	}
	return nil
}

func makeLayer(dir string, files []File) (fileLayer, error) {
	f, err := os.CreateTemp(dir, ".layer-*")
	if err != nil {
		return fileLayer{}, err
	}
	l := fileLayer{path: f.Name()}
	h := sha256.New()
	err = writeLayer(io.MultiWriter(f, h), files)
	if info, serr := f.Stat(); serr == nil {
		l.size = info.Size()
	} else if err == nil {
		err = serr
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	l.hash = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
	return l, err
}

// assemble makes manifest and configuration in OCI media types.
func assemble(spec Spec, layer v1.Layer) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.Append(img, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "edge component"},
	})
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.Created = v1.Time{Time: epoch}
	cf.OS, cf.Architecture = spec.OS, spec.Architecture
	cf.Config = v1.Config{
		Entrypoint: spec.Entrypoint,
		Cmd:        spec.Command,
		Env:        spec.Env,
		User:       spec.User,
		WorkingDir: spec.WorkingDir,
	}
	if len(spec.Ports) > 0 {
		cf.Config.ExposedPorts = map[string]struct{}{}
		for _, p := range spec.Ports {
			cf.Config.ExposedPorts[p] = struct{}{}
		}
	}
	return mutate.ConfigFile(img, cf)
}

// writeLayout writes the OCI layout with fixed times and order.
func writeLayout(w io.Writer, spec Spec, img v1.Image, layer fileLayer) error {
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	configName, err := img.ConfigName()
	if err != nil {
		return err
	}
	index, err := json.Marshal(v1.IndexManifest{
		SchemaVersion: 2,
		MediaType:     types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType: types.OCIManifestSchema1,
			Digest:    digest,
			Size:      int64(len(manifest)),
			Platform:  &v1.Platform{OS: spec.OS, Architecture: spec.Architecture},
			Annotations: map[string]string{
				annotationName: spec.Name,
				annotationTag:  spec.Name[strings.LastIndexByte(spec.Name, ':')+1:],
			},
		}},
	})
	if err != nil {
		return err
	}
	content, err := layer.Uncompressed()
	if err != nil {
		return err
	}
	defer content.Close()
	tw := tar.NewWriter(w)
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: epoch, Format: tar.FormatPAX}); err != nil {
			return err
		}
	}
	for _, e := range []struct {
		name string
		size int64
		from io.Reader
	}{
		{"oci-layout", int64(len(layoutFile)), strings.NewReader(layoutFile)},
		{"index.json", int64(len(index)), bytes.NewReader(index)},
		{blobName(digest), int64(len(manifest)), bytes.NewReader(manifest)},
		{blobName(configName), int64(len(config)), bytes.NewReader(config)},
		{blobName(layer.hash), layer.size, content},
	} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: e.name, Size: e.size, Mode: 0o644, ModTime: epoch, Format: tar.FormatPAX}); err != nil {
			return err
		}
		if _, err := io.Copy(tw, e.from); err != nil {
			return err
		}
	}
	return tw.Close()
}

// layoutFile is the content of oci-layout (OCI image layout specification).
const layoutFile = `{"imageLayoutVersion":"1.0.0"}`

func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }
