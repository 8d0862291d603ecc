package golden

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// witness takes the place of the test that calls Check, so that its failure can
// be looked at.
type witness struct {
	testing.TB
	said []string
}

func (w *witness) Helper() {}
func (w *witness) Errorf(format string, args ...any) {
	w.said = append(w.said, fmt.Sprintf(format, args...))
}

func TestCheck(t *testing.T) {
	t.Setenv(env, "")
	tests := []struct {
		name string
		file string // content; "-" for no file
		got  string
		says string // part of the failure; "" for none
	}{
		{"same", "a\nb\n", "a\nb\n", ""},
		{"both empty", "", "", ""},
		{"no file", "-", "a", "does not exist"},
		{"other line", "a\nb\n", "a\nc\n", "line 2\n got: \"c\\n\"\nwant: \"b\\n\""},
		{"missing line end", "a\n", "a", `got: "a"`},
		{"too short", "a\nb\n", "a\n", "line 2\n got: \"\"\nwant: \"b\\n\""},
		{"other byte", "\xff\x00\x01", "\xff\x00\x02", "byte 2 of 3 (want 3 bytes)\n got: 02\nwant: 01"},
		{"bytes missing", "\xff\x00\x01", "\xff\x00", "byte 2 of 2 (want 3 bytes)\n got: \nwant: 01"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "case.want")
			if tt.file != "-" {
				if err := os.WriteFile(path, []byte(tt.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			w := &witness{TB: t}
			Check(w, path, []byte(tt.got))
			said := strings.Join(w.said, "\n")
			if tt.says == "" && said != "" || !strings.Contains(said, tt.says) {
				t.Errorf("Check said %q, want %q in it", said, tt.says)
			}
		})
	}
}

func TestUpdateWritesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "folder", "case.want")
	t.Setenv(env, "1")
	Check(t, path, []byte("first"))
	Check(t, path, []byte("second"))
	t.Setenv(env, "")
	Check(t, path, []byte("second"))
	w := &witness{TB: t}
	if Check(w, path, []byte("first")); len(w.said) != 1 {
		t.Errorf("after the update, the old output failed %d times, want 1", len(w.said))
	}
}
