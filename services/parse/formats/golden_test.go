package formats

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/framing"
	"github.com/penstock/penstock/services/internal/golden"
)

// Every format has cases: <case>.in is an object as fetched, <case>.yaml, where
// there is one, the source's format setting, <case>.key the key, <case>.want what
// becomes of the records.
// covers: DEV-6, LIM-8, LIM-9, CEN-24
func TestGolden(t *testing.T) {
	for _, name := range Names() {
		cases, _ := filepath.Glob("testdata/" + name + "/*.in")
		if len(cases) == 0 {
			t.Errorf("format %q has no case: add testdata/%s/<case>.in", name, name)
		}
		for _, in := range cases {
			t.Run(in, func(t *testing.T) {
				golden.Check(t, strings.TrimSuffix(in, ".in")+".want", render(t, name, in))
			})
		}
	}
}

func render(t *testing.T, name, in string) []byte {
	t.Helper()
	data, err := os.ReadFile(in)
	if err != nil {
		t.Fatal(err)
	}
	set := struct {
		Format Setting `yaml:"format"`
	}{Setting{Type: Auto}}
	if text, err := os.ReadFile(strings.TrimSuffix(in, ".in") + ".yaml"); err == nil {
		if err := config.Parse(in, text, &set); err != nil {
			t.Fatal(err)
		}
	}
	key := ""
	if text, err := os.ReadFile(strings.TrimSuffix(in, ".in") + ".key"); err == nil {
		key = strings.TrimSpace(string(text))
	}
	format, f, skip := set.Format.Choose(set.Format.Type, key, data)
	if format != name {
		t.Fatalf("the object is taken for %s", format)
	}
	var b bytes.Buffer
	if skip != "" {
		fmt.Fprintf(&b, "skipped: %s\n", skip)
		return b.Bytes()
	}
	var options any
	if set.Format.Type == name {
		options = set.Format.Options
	}
	dec := open(t, name, options, Deps{})
	split := framing.New(f, bytes.NewReader(data), framing.Limits{})
	for n := 0; ; n++ {
		rec, err := split.Next()
		var cut *framing.Bad
		switch {
		case errors.Is(err, io.EOF):
			return b.Bytes()
		case errors.As(err, &cut):
			fmt.Fprintf(&b, "%d not a record: %v\n", n, err)
			continue
		case err != nil:
			t.Fatal(err)
		}
		var d Doc
		if err := begin(dec, key, split.Header()); err != nil {
			fmt.Fprintf(&b, "%d refused, %s: %v\n", n, fault.CodeOf(err), err)
			continue
		}
		if err := dec.Decode(rec, &d); err != nil {
			fmt.Fprintf(&b, "%d refused, %s: %v\n", n, fault.CodeOf(err), err)
			continue
		}
		fmt.Fprintf(&b, "%d %s\n  %q\n", n, d.render(), d.Body)
	}
}

// begin tells dec about the frame that a record is in, if it wants to know.
func begin(dec Decoder, key string, columns []byte) error {
	if s, ok := dec.(Starter); ok {
		return s.Start(Head{Key: key, Columns: columns, Origin: &messages.Origin{Key: key}})
	}
	return nil
}
