package security

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/penstock/penstock/tests/harness"
)

// Every test that docs/security.md names exists, and each of its claims names one or says
// that it is left to the operator.
func TestNamedTestsExist(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join(harness.Root(), "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err = filepath.WalkDir(harness.Root(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		for _, m := range function.FindAllSubmatch(data, -1) {
			there[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllSubmatch(page, -1)
	if len(named) < 40 {
		t.Errorf("the page names %d tests: is it still read rightly?", len(named))
	}
	for _, m := range named {
		if !there[string(m[1])] {
			t.Errorf("docs/security.md names %s, which does not exist", m[1])
		}
	}
	for _, part := range strings.Split(string(page[strings.Index(string(page), "## Attackers"):]), "\n### ")[1:] {
		title, text, _ := strings.Cut(part, "\n")
		if !strings.Contains(text, "`Test") && !strings.Contains(text, "`Fuzz") && !strings.Contains(text, ".yaml`") {
			t.Errorf("%q names no test", title)
		}
	}
}
