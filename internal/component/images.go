package component

import (
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/image"
)

// pauseVersion is the version of programs/pause. It is part of the image's name,
// so it changes whenever that program does.
const pauseVersion = "1.0.0"

// PauseImage is the reference of the sandbox image that containerd's
// configuration names.
const PauseImage = "edgewright.dev/pause:" + pauseVersion

// AgnhostRepository is upstream's name of its test image; the tag depends on
// the release, see Release.Image.
const AgnhostRepository = "registry.k8s.io/e2e-test-images/agnhost"

// ImageKey is the key in Paths of an image's archive: ImageKey("pause"),
// ImageKey("agnhost").
func ImageKey(name string) string { return name + ".tar" }

// Image returns the reference of one of the release's images ("pause",
// "agnhost") after import, and "" for a name it has not.
func (r Release) Image(name string) string {
	for _, c := range r.Components {
		if c.Name == "image-"+name {
			return c.Image
		}
	}
	return ""
}

// imagePath is the PATH of our images.
const imagePath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func pauseComponent() Component {
	return Component{
		Name:     "image-pause",
		Version:  pauseVersion,
		Programs: map[Set][]string{Images: {ImageKey("pause")}},
		Image:    PauseImage,
		recipe: Recipe{
			Module:  "pause",
			Sources: map[string]string{"pause/main.go": "programs/pause/main.go"},
			Targets: []Target{{Package: "./pause", Output: "pause", Intermediate: true}},
			Image: &ImageRecipe{
				Output: ImageKey("pause"),
				Spec: image.Spec{
					Name:       PauseImage,
					Entrypoint: []string{"/pause"},
					// No root: the program needs no right at all.
					User:  "65535:65535",
					Files: []image.File{{Path: "pause", Mode: 0o555, From: "pause"}},
				},
			},
			Estimate: 5 * time.Second,
			Disk:     100 << 20,
		},
	}
}

// agnhostComponent is upstream's test image without what its Dockerfile takes
// from Alpine and from other registries: a shell, dig, curl, iperf, an old
// CoreDNS and the content of fake-registry-server. Instead /bin has the few
// programs of programs/userland; `kubectl cp` needs tar.
func agnhostComponent(version, kubernetes string) Component {
	const pkg = "k8s.io/kubernetes/test/images/agnhost"
	files := []image.File{
		{Path: "agnhost", Mode: 0o755, From: "agnhost"},
		{Path: "agnhost-2", Link: "agnhost"}, // entrypoint-tester compares the two
		// Upstream's porter serves TLS with these two, found in the working directory.
		{Path: "localhost.crt", Mode: 0o644, From: "module:k8s.io/kubernetes/test/images/agnhost/porter/localhost.crt"},
		{Path: "localhost.key", Mode: 0o644, From: "module:k8s.io/kubernetes/test/images/agnhost/porter/localhost.key"},
		{Path: "uploads", Mode: 0o755, Dir: true}, // netexec
		{Path: "tmp", Mode: 0o1777, Dir: true},
		{Path: "root", Mode: 0o700, Dir: true},
		{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/false\nuser-defined-in-image:x:1000:1000::/tmp:/bin/false\n")},
		{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n")},
		{Path: "bin/userland", Mode: 0o755, From: "userland"},
	}
	for _, name := range userlandPrograms {
		files = append(files, image.File{Path: "bin/" + name, Link: "userland"})
	}
	return Component{
		Name:     "image-agnhost",
		Version:  version,
		Programs: map[Set][]string{Images: {ImageKey("agnhost")}},
		Image:    AgnhostRepository + ":" + version,
		recipe: Recipe{
			Module: "kubernetes-" + kubernetes,
			Sources: map[string]string{
				"userland/main.go":     "programs/userland/main.go",
				"userland/tar.go":      "programs/userland/tar.go",
				"userland/programs.go": "programs/userland/programs.go",
			},
			Targets: []Target{
				{Package: pkg, Output: "agnhost", LDFlags: []string{"-X", "main.Version=" + version}, Intermediate: true},
				{Package: "./userland", Output: "userland", Intermediate: true},
			},
			Image: &ImageRecipe{
				Output: ImageKey("agnhost"),
				Spec: image.Spec{
					Name:       AgnhostRepository + ":" + version,
					Entrypoint: []string{"/agnhost"},
					Command:    []string{"pause"},
					Env:        []string{imagePath},
					WorkingDir: "/",
					Ports:      []string{"80/tcp", "8080/tcp", "8081/tcp", "9376/tcp", "5000/tcp"},
					Files:      files,
				},
			},
			Probe: "k8s.io/kubernetes@v" + kubernetes,
			// Beside kubernetes, with which it shares most of its code.
			Estimate: 30 * time.Second,
			Disk:     500 << 20,
		},
	}
}

// userlandPrograms are the names programs/userland answers to.
var userlandPrograms = []string{"cat", "echo", "env", "hostname", "ls", "sleep", "tar"}
