// Package tests holds what is tested from outside: the picture that the folders
// draw, whole flows, faults and load.
package tests

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/penstock/penstock/"

// stages are the folders of services that data passes, and those that look after it:
// operate does what operators ask for, console shows it.
var stages = []string{"ingest", "fetch", "parse", "dedupe", "route", "deliver", "operate", "console"}

// topFolders are all folders that belong at the top.
var topFolders = []string{".ci", ".git", ".github", "deploy", "docs", "messages", "services", "tests", "topology"}

// emptyNames say nothing about what is in a package.
var emptyNames = []string{"util", "utils", "common", "types", "helper", "helpers", "misc", "shared", "base", "core", "lib"}

// standardNames are packages of the standard library that a file of penstock is
// likely to need beside one of ours.
var standardNames = []string{
	"bufio", "bytes", "cmp", "context", "crypto", "embed", "encoding", "errors", "expvar", "flag", "fmt", "hash", "heap", "html", "http",
	"io", "iter", "json", "list", "log", "maps", "math", "mime", "net", "os", "path", "plugin", "rand", "reflect", "regexp", "runtime",
	"signal", "slices", "slog", "sort", "sql", "strconv", "strings", "sync", "template", "testing", "time", "tls", "trace", "unicode", "url", "xml",
}

// file is what the arrows need to know of a Go file.
type file struct {
	path    string // from the top of the repository, with slashes
	pkg     string
	imports []string
}

func (f file) dir() string  { return path.Dir(f.path) }
func (f file) isTest() bool { return strings.HasSuffix(f.path, "_test.go") }

// TestArrows reads the files itself: were `go list` asked in a process of its own,
// the test cache would hold on to a pass after the code has changed.
func TestArrows(t *testing.T) {
	files, folders, err := read("..")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("only %d Go files found: the walk is broken", len(files))
	}
	for _, wrong := range check(files, folders) {
		t.Error(wrong)
	}
}

// read parses the Go files below root, and lists the folders at the top. What
// .gitignore names as "/folder/" is left out.
func read(root string) (files []file, folders []string, err error) {
	ignored, err := os.ReadFile(filepath.Join(root, ".gitignore"))
	if err != nil {
		return nil, nil, err
	}
	skip := map[string]bool{}
	for line := range strings.Lines(string(ignored)) {
		skip[strings.Trim(strings.TrimSpace(line), "/")] = true
	}
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil || rel == "." {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			top := !strings.Contains(rel, "/")
			if skip[rel] {
				return fs.SkipDir
			}
			if top {
				folders = append(folders, rel)
			}
			if d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") || !top && exists(filepath.Join(name, "go.mod")) {
				return fs.SkipDir // not part of this module
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		f := file{path: rel, pkg: parsed.Name.Name}
		for _, spec := range parsed.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return fmt.Errorf("%s: %w", rel, err)
			}
			f.imports = append(f.imports, p)
		}
		files = append(files, f)
		return nil
	})
	return files, folders, err
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// check returns what breaks a rule, sorted.
func check(files []file, folders []string) []string {
	var wrong []string
	for _, f := range folders {
		if !slices.Contains(topFolders, f) {
			wrong = append(wrong, f+": this folder does not belong at the top; see \"The folder is the picture\" in CONTRIBUTING.md")
		}
	}
	for _, f := range files {
		for _, why := range slices.Concat(names(f), arrows(f)) {
			wrong = append(wrong, f.path+": "+why)
		}
	}
	sort.Strings(wrong)
	return wrong
}

// names holds packages to the names of their folders.
func names(f file) []string {
	var wrong []string
	folder := path.Base(f.dir())
	pkg := f.pkg
	if f.isTest() {
		pkg = strings.TrimSuffix(pkg, "_test")
	}
	switch {
	case f.dir() == ".":
		wrong = append(wrong, "no Go file belongs at the top")
	case pkg == "main":
		if f.dir() != "services/penstock" && folder != "gen" && folder != "generate" && !in(f.dir(), "tests") && !in(f.dir(), "deploy") {
			wrong = append(wrong, "package main belongs in services/penstock, in a folder named gen or generate, or below tests or deploy")
		}
	case pkg != folder:
		wrong = append(wrong, fmt.Sprintf("package %s is in a folder named %s", pkg, folder))
	}
	if slices.Contains(emptyNames, folder) {
		wrong = append(wrong, "the name "+folder+" does not say what is in the package")
	}
	if slices.Contains(standardNames, folder) {
		wrong = append(wrong, "the name "+folder+" hides a package of the standard library")
	}
	if rest, ok := strings.CutPrefix(f.dir()+"/", "services/"); ok {
		if first, _, _ := strings.Cut(rest, "/"); !slices.Contains(append([]string{"internal", "demo", "penstock"}, stages...), first) {
			wrong = append(wrong, "services/"+first+" is no stage that is known here")
		}
	}
	return wrong
}

// arrows holds imports to one direction: penstock, stages, internal, topology,
// messages.
func arrows(f file) []string {
	var wrong []string
	for _, imported := range f.imports {
		if imported == "C" {
			wrong = append(wrong, "imports C: penstock is built without cgo")
		}
		if in(imported, "github.com/ThreeDotsLabs", "github.com/nats-io") && !in(f.dir(), "topology", "tests") && !speaksNATS(f, imported) {
			wrong = append(wrong, "imports "+imported+": only topology knows Watermill and NATS")
		}
		ours, ok := strings.CutPrefix(imported+"/", module)
		if !ok {
			continue
		}
		if ours = strings.TrimSuffix(ours, "/"); !mayImport(f, ours) {
			wrong = append(wrong, "imports "+ours+": against the arrows")
		}
	}
	return wrong
}

// speaksNATS tells whether the file is of the destination that publishes to the NATS of
// others: to it that is a far side as any other, and not the bus.
func speaksNATS(f file, imported string) bool {
	return f.dir() == "services/deliver/sinks" && strings.HasPrefix(path.Base(f.path), "nats") && in(imported, "github.com/nats-io")
}

func mayImport(f file, ours string) bool {
	from := f.dir()
	switch {
	case in(ours, "tests"):
		return in(from, "tests")
	case in(from, "messages"):
		return in(ours, "messages")
	case in(from, "topology"):
		return in(ours, "messages", "topology")
	case in(from, "services/penstock", "tests"):
		return true
	case in(ours, "services/penstock"):
		return false
	case in(from, "services/demo"):
		return in(ours, "messages", "services/internal", "services/demo")
	case in(ours, "services/demo"):
		return f.isTest()
	case in(from, "services/internal"):
		return in(ours, "messages", "topology", "services/internal")
	}
	if in(from, "services/console") && in(ours, "services/operate") {
		return true
	}
	for _, s := range stages {
		if in(from, "services/"+s) {
			return in(ours, "messages", "topology", "services/internal", "services/"+s)
		}
	}
	return false
}

// in tells whether p is one of the folders or below one.
func in(p string, folders ...string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return p == f || strings.HasPrefix(p, f+"/") })
}

func TestCheck(t *testing.T) {
	const (
		watermill = "github.com/ThreeDotsLabs/watermill/message"
		nats      = "github.com/nats-io/nats.go"
		server    = "github.com/nats-io/nats-server/v2/server"
	)
	tests := []struct {
		name    string
		path    string
		pkg     string
		imports string // our own with a leading "./"
		wrong   string // part of the one complaint; "" for none
	}{
		{"message may use faults", "messages/id.go", "messages", "crypto/sha256 ./messages/fault", ""},
		{"message reaches up", "messages/id.go", "messages", "./topology", "imports topology"},
		{"message uses the bus", "messages/id.go", "messages", nats, "only topology knows"},
		{"topology uses the bus", "topology/bus.go", "topology", nats + " " + watermill + " " + server + " ./messages", ""},
		{"topology reaches up", "topology/bus.go", "topology", "./services/internal/config", "against the arrows"},
		{"internal reaches down", "services/internal/config/config.go", "config", "./messages/fault ./topology ./services/internal/catalog", ""},
		{"internal reaches up", "services/internal/config/config.go", "config", "./services/fetch", "imports services/fetch"},
		{"stage reaches down", "services/parse/formats/csv.go", "formats", "./messages ./topology ./services/internal/framing ./services/parse", ""},
		{"stage imports a stage", "services/fetch/fetch.go", "fetch", "./services/parse/formats", "imports services/parse/formats"},
		{"stage's test imports a stage", "services/fetch/fetch_test.go", "fetch_test", "./services/parse", "imports services/parse"},
		{"stage with a longer name", "services/fetch/fetch.go", "fetch", "./services/fetchers", "imports services/fetchers"},
		{"destination speaks nats", "services/deliver/sinks/nats.go", "sinks", nats, ""},
		{"destination's test speaks nats", "services/deliver/sinks/nats_test.go", "sinks", nats + " " + server, ""},
		{"destination nats uses watermill", "services/deliver/sinks/nats.go", "sinks", watermill, "only topology knows"},
		{"another destination speaks nats", "services/deliver/sinks/http.go", "sinks", nats, "only topology knows"},
		{"console uses operate", "services/console/ledger.go", "console", "./services/operate/books", ""},
		{"operate uses the console", "services/operate/books/books.go", "books", "./services/console", "imports services/console"},
		{"operate imports a stage", "services/operate/books/books.go", "books", "./services/deliver", "imports services/deliver"},
		{"stage uses watermill", "services/fetch/fetch.go", "fetch", watermill, "only topology knows"},
		{"stage's test uses nats", "services/fetch/fetch_test.go", "fetch", server, "only topology knows"},
		{"stage imports main", "services/fetch/fetch.go", "fetch", "./services/penstock", "imports services/penstock"},
		{"stage imports the demo", "services/fetch/fetch.go", "fetch", "./services/demo/cloud", "imports services/demo/cloud"},
		{"stage's test imports the demo", "services/fetch/fetch_test.go", "fetch", "./services/demo/cloud", ""},
		{"demo imports a stage", "services/demo/feed/feed.go", "feed", "./services/parse", "imports services/parse"},
		{"demo imports topology", "services/demo/feed/feed.go", "feed", "./topology", "imports topology"},
		{"demo imports demo", "services/demo/feed/feed.go", "feed", "./services/demo/cloud ./messages", ""},
		{"main imports all", "services/penstock/main.go", "main", "./services/fetch ./services/demo/feed ./topology", ""},
		{"main uses the bus", "services/penstock/main.go", "main", nats, "only topology knows"},
		{"tests import all", "tests/flow/flow_test.go", "flow", "./services/fetch ./tests/bench " + server, ""},
		{"somebody imports tests", "services/fetch/fetch_test.go", "fetch", "./tests/bench", "imports tests/bench"},
		{"cgo", "services/fetch/fetch.go", "fetch", "C", "without cgo"},

		{"other package name", "services/fetch/fetch.go", "get", "", "package get is in a folder named fetch"},
		{"outside test", "services/fetch/fetch_test.go", "fetch_test", "", ""},
		{"_test without a test", "services/fetch/fetch.go", "fetch_test", "", "package fetch_test is in"},
		{"main elsewhere", "services/fetch/main.go", "main", "", "package main belongs"},
		{"a generator", "messages/gen/main.go", "main", "./messages", ""},
		{"another generator", "services/penstock/generate/main.go", "main", "./services/parse/formats", ""},
		{"what builds the image", "deploy/sbom/main.go", "main", "", ""},
		{"a program for tests", "tests/bench/load/main.go", "main", "", ""},
		{"util", "services/internal/util/x.go", "util", "", "does not say"},
		{"helpers in a stage", "services/fetch/helpers/x.go", "helpers", "", "does not say"},
		{"standard name", "services/internal/log/x.go", "log", "", "hides a package"},
		{"unknown service", "services/enrich/x.go", "enrich", "", "no stage that is known"},
		{"Go file at the top", "main.go", "main", "", "at the top"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := file{path: tt.path, pkg: tt.pkg}
			for _, imported := range strings.Fields(tt.imports) {
				if ours, ok := strings.CutPrefix(imported, "./"); ok {
					imported = module + ours
				}
				f.imports = append(f.imports, imported)
			}
			got := check([]file{f}, []string{"services", ".github"})
			switch {
			case tt.wrong == "" && len(got) > 0:
				t.Errorf("check = %q, want nothing", got)
			case tt.wrong != "" && (len(got) != 1 || !strings.Contains(got[0], tt.wrong)):
				t.Errorf("check = %q, want %q alone", got, tt.wrong)
			}
		})
	}
}

func TestReadSeesWhatIsThere(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		".gitignore":               "/built/\n*.out\n",
		"messages/a.go":            "package messages\nimport x \"github.com/nats-io/nats.go\"\n",
		"messages/testdata/b.go":   "package other\n",
		"built/c.go":               "package built\n",
		"helpers/d_windows.go":     "//go:build windows\n\npackage helpers\n",
		"tests/peer/go.mod":        "module peer\n",
		"tests/peer/e.go":          "package peer\nimport _ \"github.com/nats-io/nats.go\"\n",
		".ci/tools/f.go":           "package f\n",
		"services/fetch/g_test.go": "package fetch_test\nimport \"" + module + "services/parse\"\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files, folders, err := read(root)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"helpers/d_windows.go: the name helpers does not say what is in the package",
		"helpers: this folder does not belong at the top; see \"The folder is the picture\" in CONTRIBUTING.md",
		"messages/a.go: imports github.com/nats-io/nats.go: only topology knows Watermill and NATS",
		"services/fetch/g_test.go: imports services/parse: against the arrows",
	}
	if got := check(files, folders); !slices.Equal(got, want) {
		t.Errorf("check =\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if err := os.WriteFile(filepath.Join(root, "messages/a.go"), []byte("package"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := read(root); err == nil {
		t.Error("a file that does not parse was passed over")
	}
}
