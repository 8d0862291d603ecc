// Package coverage makes docs/coverage.md: which requirement is shown by which
// test.
//
//	rows.tsv (what is asked for) ─┐
//	open.tsv (what is not, and why) ─┼─▶ docs/coverage.md
//	"covers:" comments of all tests ─┘
//
// A test names what it shows in a comment: "covers: DEV-55, F-6". The page fails
// when it is stale, when a test names a row that does not exist, and when a row is
// neither covered nor said to be open.
package coverage

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const page = "../../docs/coverage.md"

// row is one requirement.
type row struct {
	id, title string
	tests     []string
	open      string // why no test shows it
}

// areas are the prefixes of row ids, in the order of the page.
var areas = []struct{ prefix, title string }{
	{"F", "Wire formats"},
	{"VOI", "Voiso security events"},
	{"OPC", "OPSWAT Central Management logs"},
	{"MDA", "MetaDefender IT Access logs"},
	{"CEN", "Censornet log streaming"},
	{"DEV", "What the Devo AWS collector does"},
	{"DEV-E", "Its configuration errors"},
	{"LIM", "Limits of those systems that penstock does not have"},
}

// idForm finds ids, ranges of them (DEV-70..73) and lists (OPC-15, 17).
var idForm = regexp.MustCompile(`\b(DEV-E|VOI-|OPC-|MDA-|CEN-|DEV-|LIM-|F-)(\d+)(?:(?:\.\.|…)(\d+))?`)

// ids returns the row ids that text names.
func ids(text string) []string {
	var out []string
	for _, m := range idForm.FindAllStringSubmatch(text, -1) {
		from, _ := strconv.Atoi(m[2])
		to := from
		if m[3] != "" {
			to, _ = strconv.Atoi(m[3])
		}
		for n := from; n <= to && n-from < 1000; n++ {
			out = append(out, m[1]+strconv.Itoa(n))
		}
	}
	return out
}

// covered returns the tests of each row, and the places that say covers.
func covered(t *testing.T, root string) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	files := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(files, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			for _, id := range ids(claims(f, fn)) {
				place := filepath.ToSlash(filepath.Dir(name)) + " " + fn.Name.Name
				if !slices.Contains(found[id], place) {
					found[id] = append(found[id], place)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// claims is what follows "covers:" in the comments of a function.
func claims(f *ast.File, fn *ast.FuncDecl) string {
	var text strings.Builder
	for _, group := range f.Comments {
		if group != fn.Doc && (group.Pos() < fn.Pos() || group.End() > fn.End()) {
			continue
		}
		if _, after, ok := strings.Cut(group.Text(), "covers:"); ok {
			text.WriteString(after)
		}
	}
	return text.String()
}

// table reads lines of two columns.
func table(t *testing.T, name string) (keys []string, values map[string]string) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	values = map[string]string{}
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, value, ok := strings.Cut(line, "\t")
		if !ok || value == "" {
			t.Fatalf("%s:%d: no tab, or nothing behind it", name, n)
		}
		for _, id := range expand(key) {
			if _, twice := values[id]; twice {
				t.Errorf("%s:%d: %s stands here for the second time", name, n, id)
			}
			keys = append(keys, id)
			values[id] = value
		}
	}
	return keys, values
}

func expand(key string) []string {
	if all := ids(key); len(all) > 0 {
		return all
	}
	return []string{key}
}

func area(id string) string {
	for _, a := range []string{"DEV-E", "DEV", "VOI", "OPC", "MDA", "CEN", "LIM", "F"} {
		if strings.HasPrefix(id, a) {
			return a
		}
	}
	return ""
}

func TestCoverage(t *testing.T) {
	order, titles := table(t, "rows.tsv")
	_, open := table(t, "open.tsv")
	tests := covered(t, "../..")

	rows := map[string][]row{}
	for _, id := range order {
		r := row{id: id, title: titles[id], tests: tests[id], open: open[id]}
		slices.Sort(r.tests)
		switch {
		case len(r.tests) == 0 && r.open == "":
			t.Errorf("%s (%s) is covered by no test, and open.tsv does not say why", id, r.title)
		case len(r.tests) > 0 && strings.HasPrefix(r.open, "later"):
			t.Errorf("%s is covered by %s, but open.tsv still says: %s", id, r.tests[0], r.open)
		}
		rows[area(id)] = append(rows[area(id)], r)
	}
	for _, id := range slices.Sorted(maps.Keys(tests)) {
		if _, known := titles[id]; !known {
			t.Errorf("%s names %s, which is no row of rows.tsv", strings.Join(tests[id], ", "), id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(open)) {
		if _, known := titles[id]; !known {
			t.Errorf("open.tsv names %s, which is no row of rows.tsv", id)
		}
	}

	got := render(rows)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(page, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/coverage.md is stale: UPDATE_GOLDEN=1 go test ./tests/coverage")
	}
}

func render(rows map[string][]row) []byte {
	var b bytes.Buffer
	b.WriteString(`# What is covered

Every requirement that penstock is built to, and the tests that show it. This page
is made from the tests: UPDATE_GOLDEN=1 go test ./tests/coverage.

| area | rows | shown by a test | open |
|---|---:|---:|---:|
`)
	for _, a := range areas {
		shown, open := 0, 0
		for _, r := range rows[a.prefix] {
			if len(r.tests) > 0 {
				shown++
			} else {
				open++
			}
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %d |\n", a.title, len(rows[a.prefix]), shown, open)
	}
	for _, a := range areas {
		fmt.Fprintf(&b, "\n## %s\n\n| row | what | shown by |\n|---|---|---|\n", a.title)
		slices.SortStableFunc(rows[a.prefix], func(x, y row) int { return cmp.Compare(number(x.id), number(y.id)) })
		for _, r := range rows[a.prefix] {
			by := make([]string, 0, len(r.tests)+1)
			for _, place := range r.tests {
				dir, name, _ := strings.Cut(place, " ")
				by = append(by, fmt.Sprintf("[%s](../%s)", name, dir))
			}
			if r.open != "" {
				by = append(by, r.open)
			}
			fmt.Fprintf(&b, "| %s | %s | %s |\n", r.id, r.title, strings.Join(by, ", "))
		}
	}
	return b.Bytes()
}

func number(id string) int {
	n, _ := strconv.Atoi(strings.TrimLeft(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-"))
	return n
}

func TestIDs(t *testing.T) {
	tests := []struct{ in, want string }{
		{"F-5 (delete only), pain 2, LIM-11.", "F-5 LIM-11"},
		{"DEV-70..73, DEV-E5", "DEV-70 DEV-71 DEV-72 DEV-73 DEV-E5"},
		{"UTF-8, nothing", ""},
	}
	for _, tt := range tests {
		if got := strings.Join(ids(tt.in), " "); got != tt.want {
			t.Errorf("%q gives %q, want %q", tt.in, got, tt.want)
		}
	}
}
