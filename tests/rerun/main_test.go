package main

import (
	"bytes"
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// module writes a module with one test file and makes it the working directory.
func module(t *testing.T, code string) {
	t.Helper()
	dir := t.TempDir()
	t.Chdir(dir)
	for name, text := range map[string]string{
		"go.mod":    "module example.org/flaky\n\ngo 1.24\n",
		"a_test.go": "package flaky\n\nimport (\n\t\"os\"\n\t\"testing\"\n)\n\nvar _ = os.Stat\n" + code,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What fails the first time, and not the second.
const flaky = `
func TestFlaky(t *testing.T) {
	t.Run("deeper", func(t *testing.T) {
		if _, err := os.Stat("ran"); err != nil {
			_ = os.WriteFile("ran", nil, 0o600)
			t.Fatal("not this time")
		}
	})
}
func TestFine(t *testing.T) {}
`

// What fails each time.
const bad = "func TestBad(t *testing.T) { t.Fatal(\"never\") }\n"

func TestRerun(t *testing.T) {
	tests := []struct {
		name, code    string
		first, second int // exit codes; second only where the first is that of tests
		says          string
		timeout       string // of the whole package; "" for one that is not reached
	}{
		{"all pass", "func TestFine(t *testing.T) {}\n", 0, 0, "ok  ", ""},
		{"fails once", flaky, exitTests, 0, "not this time", ""},
		{"fails again", bad, exitTests, 1, "never", ""},
		{"panics", "func TestBad(t *testing.T) { panic(\"boom\") }\n", 1, 0, "not forgiven: example.org/flaky: panicked", ""},
		{"runs out of time", "func TestBad(t *testing.T) { select {} }\n", 1, 0, "not forgiven: example.org/flaky: panicked", "1s"},
		{"does not build", "func TestBad(t *testing.T) { nothing() }\n", 1, 0, "not forgiven: example.org/flaky: does not build", ""},
		{"ends the process", "func TestBad(t *testing.T) { os.Exit(3) }\n", 1, 0, "not forgiven: example.org/flaky: failed outside of its tests", ""},
		{"ends the process after a failure", bad + "func TestWorse(t *testing.T) { os.Exit(3) }\n", 1, 0, "not forgiven: example.org/flaky: did not come to its end", ""},
		{"panics in the middle of a line after a failure", bad + "func TestWorse(t *testing.T) { os.Stderr.WriteString(\"so far: \"); go panic(\"boom\"); select {} }\n", 1, 0, "not forgiven: example.org/flaky: did not come to its end", ""},
		{"says nothing of a test", "func TestMain(m *testing.M) { m.Run(); os.Exit(1) }\nfunc TestFine(t *testing.T) {}\n", 1, 0, "not forgiven: ", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			module(t, test.code)
			var out bytes.Buffer
			code, err := run([]string{"-failed", "failed", "-timeout", cmp.Or(test.timeout, "10m"), "./..."}, &out)
			if err != nil || code != test.first || !strings.Contains(out.String(), test.says) {
				t.Fatalf("first run: exit code %d, %v, want %d and %q:\n%s", code, err, test.first, test.says, out.String())
			}
			if code != exitTests {
				return
			}
			out.Reset()
			if code, err = run([]string{"-only", "failed"}, &out); err != nil || code != test.second {
				t.Fatalf("second run: exit code %d, %v, want %d:\n%s", code, err, test.second, out.String())
			}
		})
	}
}

// A data race fails a test, and is no fault of the clock's.
func TestRace(t *testing.T) {
	const events = `{"Action":"output","Package":"p","Test":"TestA","Output":"WARNING: DATA RACE\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}
`
	if r := read(strings.NewReader(events), &bytes.Buffer{}); len(r.broken) != 1 || r.broken[0] != "p: has a data race" {
		t.Errorf("broken is %q", r.broken)
	}
}

// When go test itself is killed the packages behind have not run.
func TestKilled(t *testing.T) {
	module(t, "")
	const killed = `#!/bin/sh
echo '{"Action":"fail","Package":"p","Test":"TestA"}'
kill -9 $$
`
	if err := os.WriteFile("go", []byte(killed), 0o700); err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", here+string(os.PathListSeparator)+os.Getenv("PATH"))
	var out bytes.Buffer
	if code, err := run([]string{"-failed", "failed", "./..."}, &out); err != nil || code != 1 || !strings.Contains(out.String(), "not forgiven: go test: signal: killed") {
		t.Errorf("exit code %d, %v:\n%s", code, err, out.String())
	}
}

// The race detector needs cgo in the second run as in the first, whatever is set.
func TestRaceNeedsCgo(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("no gcc")
	}
	t.Setenv("CGO_ENABLED", "0")
	module(t, flaky)
	var out bytes.Buffer
	if code, err := run([]string{"-failed", "failed", "-race", "./..."}, &out); err != nil || code != exitTests {
		t.Fatalf("first run: exit code %d, %v:\n%s", code, err, out.String())
	}
	if code, err := run([]string{"-only", "failed", "-race"}, &out); err != nil || code != 0 {
		t.Fatalf("second run: exit code %d, %v:\n%s", code, err, out.String())
	}
}

// A second run in which the test was not run proves nothing.
func TestNotRun(t *testing.T) {
	module(t, "func TestFine(t *testing.T) {}\n")
	if code, err := again([]string{"example.org/flaky", "TestGone"}, nil, &bytes.Buffer{}); err != nil || code != 1 {
		t.Errorf("exit code %d, %v", code, err)
	}
}

// The script shows in its table what passed only the second time, and ends badly when it
// fails again.
func TestScript(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the checks run on Linux")
	}
	script, err := os.ReadFile("../../.ci/run")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, code string
		ok         bool
		says       string
	}{
		{"flaky", flaky, true, "flaky: example.org/flaky TestFlaky"},
		{"bad", bad, false, "FAILED"},
		{"panics", "func TestBad(t *testing.T) { panic(\"boom\") }\n", false, "FAILED"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			module(t, test.code)
			for name, file := range map[string]struct {
				data []byte
				mode os.FileMode
			}{
				".ci/run": {script, 0o700}, "tests/rerun/main.go": {program, 0o600},
				"bin/curl": {[]byte("#!/bin/sh\n"), 0o700}, "bin/chromium": {[]byte("#!/bin/sh\n"), 0o700}, "bin/chromium-browser": {[]byte("#!/bin/sh\n"), 0o700},
			} {
				if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, file.data, file.mode); err != nil {
					t.Fatal(err)
				}
			}
			here, err := os.Getwd()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), ".ci/run", "test")
			cmd.Env = append(os.Environ(), "PATH="+filepath.Join(here, "bin")+":"+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			if (err == nil) != test.ok || !strings.Contains(string(out), test.says) {
				t.Errorf("ended with %v, want it to say %q:\n%s", err, test.says, out)
			}
		})
	}
}
