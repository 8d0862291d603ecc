// Command rerun runs go test for CI and tells tests that failed by themselves from what
// is never forgiven: a package that does not build, a panic, a test that ran out of time
// or a data race.
//
//	go run ./tests/rerun -failed FILE -race ./...    notes what failed, exit code 4 when only tests did
//	go run ./tests/rerun -only FILE -race            runs just these once more
//
// All other arguments are go test's. A flaky test is a fault to be mended: see
// CONTRIBUTING.md.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
)

// exitTests is the exit code when nothing but tests failed: they may be run again.
const exitTests = 4

func main() {
	code, err := run(os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "rerun:", err)
		code = 2
	}
	os.Exit(code)
}

func run(args []string, out io.Writer) (int, error) {
	if len(args) < 2 || args[0] != "-failed" && args[0] != "-only" {
		return 0, errors.New("use -failed FILE or -only FILE, then the arguments of go test")
	}
	mode, file, args := args[0], args[1], args[2:]
	if mode == "-failed" {
		r, err := goTest(args, out)
		switch {
		case err != nil:
			return 0, err
		case r.passed():
			return 0, nil
		case len(r.broken) > 0:
			for _, b := range r.broken {
				_, _ = fmt.Fprintln(out, "not forgiven:", b)
			}
			return 1, nil
		}
		return exitTests, os.WriteFile(file, []byte(strings.Join(r.lines(), "\n")+"\n"), 0o600) //nolint:gosec // the file that CI names
	}
	data, err := os.ReadFile(file) //nolint:gosec // the file that -failed wrote
	if err != nil {
		return 0, err
	}
	return again(strings.Fields(string(data)), args, out)
}

// again runs tests, pairs of package and name, once more and alone.
func again(pairs, args []string, out io.Writer) (int, error) {
	failed := map[string][]string{}
	for pair := range slices.Chunk(pairs, 2) {
		failed[pair[0]] = append(failed[pair[0]], pair[1])
	}
	for _, pkg := range slices.Sorted(maps.Keys(failed)) {
		names := make([]string, len(failed[pkg]))
		for i, name := range failed[pkg] {
			names[i] = regexp.QuoteMeta(name)
		}
		r, err := goTest(append(slices.Clone(args), "-count=1", "-run", "^("+strings.Join(names, "|")+")$", pkg), out)
		if err != nil {
			return 0, err
		}
		for _, name := range failed[pkg] {
			if !r.passed() || !r.ok[pkg+" "+name] {
				return 1, nil
			}
		}
	}
	return 0, nil
}

// result is what became of one go test.
type result struct {
	// ok and failed are tests, by package and name; subtests count as theirs.
	ok, failed map[string]bool
	// broken are packages that failed in ways that no second run forgives, and how.
	broken []string
}

func (r *result) passed() bool    { return len(r.failed) == 0 && len(r.broken) == 0 }
func (r *result) lines() []string { return slices.Sorted(maps.Keys(r.failed)) }

// event is one line of go test -json. Source: go doc test2json.
type event struct {
	Action, Package, ImportPath, Test, Output, FailedBuild string
}

// goTest runs go test and writes to out what it would have without -json.
func goTest(args []string, out io.Writer) (*result, error) {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...) //nolint:gosec // what CI wants to run
	if slices.Contains(args, "-race") {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1") // it cannot do without
	}
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r := read(pipe, out)
	if err := cmd.Wait(); err != nil && (r.passed() || cmd.ProcessState.ExitCode() != 1) {
		r.broken = append(r.broken, "go test: "+err.Error())
	}
	return r, nil
}

// read follows the events of go test -json until they end.
func read(events io.Reader, out io.Writer) *result {
	r := &result{ok: map[string]bool{}, failed: map[string]bool{}}
	said := map[string]*bytes.Buffer{} // by package, and by package and test, until it ends
	bad := map[string]string{}         // packages in which something unforgivable was said
	tests := map[string]int{}          // failed tests by package
	ended := map[string]bool{}         // packages whose tests have all run, and not all passed
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		if len(line) > 0 && json.Unmarshal(line, &e) != nil {
			_, _ = out.Write(line) // what is not the test's own
			e = event{}
		}
		name, _, isSub := strings.Cut(e.Test, "/")
		key := strings.TrimSpace(e.Package + " " + name)
		switch e.Action {
		case "output":
			if said[key] == nil {
				said[key] = &bytes.Buffer{}
			}
			said[key].WriteString(e.Output)
			if e.Test == "" && e.Output == "FAIL\n" {
				ended[e.Package] = true
			}
			if s := unforgivable(e.Output); s != "" {
				bad[e.Package] = s
			}
		case "build-output":
			_, _ = io.WriteString(out, e.Output)
		case "pass", "skip":
			switch {
			case e.Test == "":
				lastLine(out, said[key])
				delete(said, key)
			case !isSub:
				r.ok[key] = e.Action == "pass"
				delete(said, key)
			}
		case "fail":
			switch {
			case e.Test != "" && isSub: // its parent fails as well
			case e.Test != "":
				tests[e.Package]++
				r.failed[key] = true
				show(out, said[key])
				delete(said, key)
			default:
				how := bad[e.Package]
				switch {
				case e.FailedBuild != "":
					how = "does not build"
				case how == "" && tests[e.Package] == 0:
					how = "failed outside of its tests"
				case how == "" && !ended[e.Package]: // whatever runs again, the rest has not run
					how = "did not come to its end"
				}
				if how != "" {
					r.broken = append(r.broken, e.Package+": "+how)
				}
				for _, k := range slices.Sorted(maps.Keys(said)) { // also of tests that did not end
					if k == e.Package || strings.HasPrefix(k, e.Package+" ") {
						show(out, said[k])
						delete(said, k)
					}
				}
			}
		}
		if err != nil {
			return r
		}
	}
}

// unforgivable names what a line of output gives away, "" when it may be a test's own.
func unforgivable(line string) string {
	for prefix, what := range map[string]string{
		"panic: ": "panicked", "fatal error: ": "crashed", "WARNING: DATA RACE": "has a data race", "exit status ": "ended badly", "signal: ": "was killed",
	} {
		if strings.HasPrefix(line, prefix) {
			return what
		}
	}
	return ""
}

func show(out io.Writer, said *bytes.Buffer) {
	if said != nil {
		_, _ = out.Write(said.Bytes())
	}
}

// lastLine is all that go test says of a package that passed.
func lastLine(out io.Writer, said *bytes.Buffer) {
	if said == nil {
		return
	}
	all := strings.Split(strings.TrimRight(said.String(), "\n"), "\n")
	_, _ = fmt.Fprintln(out, all[len(all)-1])
}
