// Package golden compares what a test got with a file in testdata.
//
// UPDATE_GOLDEN=1 in the environment writes the files instead. An environment
// variable reaches every package of `go test ./...`; a flag would not.
package golden

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf8"
)

// env switches from comparing to writing when it is "1".
const env = "UPDATE_GOLDEN"

const mend = "if the new output is right, run: UPDATE_GOLDEN=1 go test"

// Check fails t unless the file at path, relative to the package of the test,
// holds exactly got. The test goes on, so that one run shows every difference.
func Check(t testing.TB, path string, got []byte) {
	t.Helper()
	if os.Getenv(env) == "1" {
		if err := write(path, got); err != nil {
			t.Errorf("golden: %v", err)
		}
		return
	}
	want, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		t.Errorf("golden: %s does not exist; %s", path, mend)
	case err != nil:
		t.Errorf("golden: %v", err)
	case !bytes.Equal(got, want):
		t.Errorf("golden: %s differs: %s\n%s", path, difference(got, want), mend)
	}
}

// write leaves a file alone that is right already, so that its time stays.
func write(path string, got []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, got) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	return os.WriteFile(path, got, 0o600)
}

// difference shows the first line that is not the same, or the first byte of
// what is not text.
func difference(got, want []byte) string {
	if !utf8.Valid(got) || !utf8.Valid(want) {
		at := 0
		for at < len(got) && at < len(want) && got[at] == want[at] {
			at++
		}
		return fmt.Sprintf("byte %d of %d (want %d bytes)\n got: % x\nwant: % x",
			at, len(got), len(want), window(got, at), window(want, at))
	}
	g, w := bytes.SplitAfter(got, []byte("\n")), bytes.SplitAfter(want, []byte("\n"))
	n := 0
	for n < len(g) && n < len(w) && bytes.Equal(g[n], w[n]) {
		n++
	}
	return fmt.Sprintf("line %d\n got: %s\nwant: %s", n+1, line(g, n), line(w, n))
}

// window is at most 16 bytes from at on.
func window(b []byte, at int) []byte { return b[at:min(at+16, len(b))] }

// line quotes line n, so that blanks and line ends show, and cuts a long one.
func line(lines [][]byte, n int) string {
	if n >= len(lines) {
		return "(end of output)"
	}
	const most = 400
	if l := lines[n]; len(l) > most {
		return fmt.Sprintf("%q... (%d bytes)", l[:most], len(l))
	}
	return fmt.Sprintf("%q", lines[n])
}
