package component

import (
	"strings"
	"testing"
)

const goodSum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseManifestRefuses(t *testing.T) {
	file := func(s string) string {
		return `{"schema":1,"component":"c","version":"1","os":"linux","arch":"amd64","recipe":"r","files":[` + s + `]}`
	}
	good := `{"name":"a","size":1,"mode":493,"sha256":"` + goodSum + `"}`
	if _, err := ParseManifest([]byte(file(good))); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"no files":       file(""),
		"newer schema":   strings.Replace(file(good), `"schema":1`, `"schema":2`, 1),
		"unknown field":  strings.Replace(file(good), `"schema"`, `"scheme":1,"schema"`, 1),
		"more":           file(good) + "{}",
		"escape":         file(strings.Replace(good, `"a"`, `"../a"`, 1)),
		"backslash":      file(strings.Replace(good, `"a"`, `"..\\a"`, 1)),
		"absolute":       file(strings.Replace(good, `"a"`, `"/a"`, 1)),
		"the manifest":   file(strings.Replace(good, `"a"`, `"manifest.json"`, 1)),
		"twice":          file(good + "," + good),
		"negative":       file(strings.Replace(good, `"size":1`, `"size":-1`, 1)),
		"huge":           file(strings.Replace(good, `"size":1`, `"size":99999999999999`, 1)),
		"setuid":         file(strings.Replace(good, `493`, `2541`, 1)),
		"setuid in Go":   file(strings.Replace(good, `493`, `8389101`, 1)),
		"no sum":         file(strings.Replace(good, goodSum, "", 1)),
		"link to later":  file(strings.Replace(good, `}`, `,"link":"b"}`, 1)),
		"link to itself": file(strings.Replace(good, `}`, `,"link":"a"}`, 1)),
		"link to other":  file(good + "," + strings.Replace(strings.Replace(good, `"a"`, `"b"`, 1), `"size":1`, `"size":2,"link":"a"`, 1)),
	} {
		if _, err := ParseManifest([]byte(text)); err == nil {
			t.Errorf("%s: accepted %s", name, text)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"schema":1,"component":"c","version":"1","os":"linux","arch":"amd64","recipe":"r","files":[{"name":"a","size":1,"mode":493,"sha256":"` + goodSum + `"},{"name":"b","size":1,"mode":493,"sha256":"` + goodSum + `","link":"a"}]}`))
	f.Add([]byte(`{"schema":1,"files":[{"name":"../a"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseManifest(data)
		if err != nil {
			return
		}
		for _, file := range m.Files {
			if strings.ContainsAny(file.Name, `/\`) || strings.HasPrefix(file.Name, ".") || file.Size < 0 {
				t.Errorf("accepted %+v", file)
			}
		}
		again, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		if len(again) <= maxManifest {
			if _, err := ParseManifest(again); err != nil {
				t.Errorf("does not read what it writes: %v", err)
			}
		}
	})
}

func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(`{"schema":1,"entries":{"v1/kubernetes/1.36.3/linux-amd64/0123456789ab":"` + goodSum + `"}}`))
	f.Add([]byte(`{"schema":1,"entries":{"v1/../../etc/x":"` + goodSum + `"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		i, err := ParseIndex(data)
		if err != nil {
			return
		}
		for key := range i.Entries {
			if !strings.HasPrefix(key, layoutDir+"/") || strings.Contains(key, "..") && strings.Contains(key, "/..") {
				t.Errorf("accepted %q", key)
			}
		}
	})
}
