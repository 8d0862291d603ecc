package formats

import (
	"embed"
	"path"
	"strings"
)

// cases are the objects that the tests read.
//
//go:embed testdata
var cases embed.FS

// Example returns a small object of format name and a key that such an object
// has, "" where keys do not matter; nil for an unknown format. It is the smallest
// case, if possible one that needs no settings.
func Example(name string) (key string, data []byte) {
	dir := "testdata/" + name
	files, err := cases.ReadDir(dir)
	if err != nil {
		return "", nil
	}
	set := true
	for _, f := range files {
		base, isCase := strings.CutSuffix(f.Name(), ".in")
		if !isCase || strings.Contains(base, "broken") || strings.Contains(base, "bad") {
			continue
		}
		text, err := cases.ReadFile(path.Join(dir, f.Name()))
		_, plain := cases.ReadFile(path.Join(dir, base+".yaml"))
		needs := plain == nil
		if err != nil || needs && !set || data != nil && needs == set && len(text) >= len(data) {
			continue
		}
		data, key, set = text, "", needs
		if name, err := cases.ReadFile(path.Join(dir, base+".key")); err == nil {
			key = strings.TrimSpace(string(name))
		}
	}
	return key, data
}
