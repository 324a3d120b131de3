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
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Bounds of what is read of an archive. Index, manifests and configurations are a
// few kilobytes; images an edge site carries have tens of files.
const (
	maxDocument = 4 << 20
	maxEntries  = 10_000
	maxImages   = 1_000
)

// Info is one image of an archive.
type Info struct {
	Name     string `json:"name"`     // full reference
	Digest   string `json:"digest"`   // "sha256:…" of what the index names
	Platform string `json:"platform"` // "linux/amd64"; several are separated by commas, empty if not said
}

// Check reads a whole archive, compares every blob with its digest, and returns
// the images it holds. Only OCI layouts pass; a file of `docker save` of recent
// versions is one.
func Check(archive string) ([]Info, error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	infos, err := check(f)
	if err != nil {
		return nil, fmt.Errorf("image archive %s: %w", archive, err)
	}
	return infos, nil
}

// check is Check for a stream. What it holds in memory is bounded: index and
// manifests, not layers.
func check(r io.Reader) ([]Info, error) {
	var index []byte
	layout := false
	blobs := map[string][]byte{} // content of those small enough to be a document
	present := map[string]int64{}
	tr := tar.NewReader(r)
	for entries := 0; ; entries++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("is no tar archive, or a damaged one: %w", err)
		}
		if entries > maxEntries {
			return nil, fmt.Errorf("has more than %d files", maxEntries)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		switch name := path.Clean(h.Name); {
		case name == "oci-layout":
			layout = true
		case name == "index.json":
			if index, err = readDocument(tr); err != nil {
				return nil, fmt.Errorf("index.json: %w", err)
			}
		case strings.HasPrefix(name, "blobs/sha256/"):
			want := strings.TrimPrefix(name, "blobs/sha256/")
			sum := sha256.New()
			var content bytes.Buffer
			var to io.Writer = sum
			// Manifests and configurations are kept; the sum of those is bounded by
			// maxEntries only in theory, so the count of kept ones is bounded too.
			keep := h.Size <= maxDocument && len(blobs) < 2*maxImages
			if keep {
				to = io.MultiWriter(sum, &content)
			}
			n, err := io.Copy(to, tr)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if got := hex.EncodeToString(sum.Sum(nil)); got != want {
				return nil, fmt.Errorf("%s has sha256 %s: the archive is damaged", name, got)
			}
			present["sha256:"+want] = n
			if keep && looksLikeJSON(content.Bytes()) {
				blobs["sha256:"+want] = content.Bytes()
			}
		}
	}
	if !layout || index == nil {
		return nil, errors.New("is no OCI image layout: it has no oci-layout or no index.json; `ctr images export`, `docker save` and `skopeo copy … oci-archive:` make one")
	}
	return resolve(index, blobs, present)
}

func looksLikeJSON(b []byte) bool { return len(b) > 0 && b[0] == '{' }

func readDocument(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err == nil && len(b) > maxDocument {
		err = fmt.Errorf("is bigger than %d bytes", maxDocument)
	}
	return b, err
}

// ParseIndex reads an archive's index.json and returns its named images.
func ParseIndex(data []byte) ([]Info, error) {
	_, infos, err := parseIndex(data)
	return infos, err
}

func parseIndex(data []byte) ([]v1.Descriptor, []Info, error) {
	index, err := v1.ParseIndexManifest(bytes.NewReader(data))
	if err != nil {
		return nil, nil, fmt.Errorf("index.json: %w", err)
	}
	if len(index.Manifests) > maxImages {
		return nil, nil, fmt.Errorf("index.json lists more than %d images", maxImages)
	}
	var ds []v1.Descriptor
	var infos []Info
	for _, d := range index.Manifests {
		name := d.Annotations[annotationName]
		if name == "" {
			// Tools that know no containerd put a full reference here.
			name = d.Annotations[annotationTag]
		}
		if name == "" {
			continue
		}
		if err := CheckReference(name); err != nil {
			return nil, nil, fmt.Errorf("index.json: %w", err)
		}
		info := Info{Name: name, Digest: d.Digest.String()}
		if d.Platform != nil {
			info.Platform = d.Platform.String()
		}
		ds = append(ds, d)
		infos = append(infos, info)
	}
	if len(infos) == 0 {
		return nil, nil, errors.New("index.json names no image (annotation " + annotationName + ")")
	}
	return ds, infos, nil
}

// resolve checks that everything the index reaches is in the archive, for at
// least one platform of each image: archives of `docker save` leave others out.
func resolve(index []byte, blobs map[string][]byte, present map[string]int64) ([]Info, error) {
	ds, infos, err := parseIndex(index)
	if err != nil {
		return nil, err
	}
	for i, d := range ds {
		platforms := map[string]bool{}
		if err := reach(d, blobs, present, platforms, 0); err != nil {
			return nil, fmt.Errorf("%s: %w", infos[i].Name, err)
		}
		if len(platforms) > 0 {
			infos[i].Platform = strings.Join(slices.Sorted(maps.Keys(platforms)), ",")
		}
	}
	return infos, nil
}

// maxDepth bounds indexes within indexes; one level is usual.
const maxDepth = 4

func reach(d v1.Descriptor, blobs map[string][]byte, present map[string]int64, platforms map[string]bool, depth int) error {
	if depth > maxDepth {
		return errors.New("indexes are nested too deep")
	}
	doc, ok := blobs[d.Digest.String()]
	if !ok {
		return fmt.Errorf("the archive lacks %s", d.Digest)
	}
	switch d.MediaType {
	case types.OCIImageIndex, types.DockerManifestList:
		index, err := v1.ParseIndexManifest(bytes.NewReader(doc))
		if err != nil {
			return fmt.Errorf("index %s: %w", d.Digest, err)
		}
		complete := false
		var first error
		for _, m := range index.Manifests {
			if err := reach(m, blobs, present, platforms, depth+1); err == nil {
				complete = true
			} else if first == nil {
				first = err
			}
		}
		if !complete {
			return errors.Join(fmt.Errorf("no platform of %s is complete", d.Digest), first)
		}
		return nil
	case types.OCIManifestSchema1, types.DockerManifestSchema2:
		m, err := v1.ParseManifest(bytes.NewReader(doc))
		if err != nil {
			return fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		for _, blob := range append([]v1.Descriptor{m.Config}, m.Layers...) {
			if size, ok := present[blob.Digest.String()]; !ok || size != blob.Size {
				return fmt.Errorf("the archive lacks %s", blob.Digest)
			}
		}
		var cf struct {
			OS           string `json:"os"`
			Architecture string `json:"architecture"`
		}
		if err := json.Unmarshal(blobs[m.Config.Digest.String()], &cf); err != nil {
			return fmt.Errorf("configuration %s: %w", m.Config.Digest, err)
		}
		if cf.OS != "" && cf.OS != "unknown" {
			platforms[cf.OS+"/"+cf.Architecture] = true
		}
		return nil
	}
	return fmt.Errorf("%s has media type %q, which is no image", d.Digest, d.MediaType)
}
