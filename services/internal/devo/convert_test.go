package devo

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"github.com/penstock/penstock/services/internal/golden"
)

// A collector's configuration becomes one of penstock, and what does not is told.
// covers: DEV-33, DEV-128, DEV-142, DEV-63, DEV-64, DEV-65, DEV-68, DEV-70..78, DEV-81, VOI-34
func TestConvert(t *testing.T) {
	data, err := os.ReadFile("testdata/collector.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Read(data)
	if err != nil {
		t.Fatal(err)
	}
	text, notes, err := c.Convert()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(text, []byte("not-to-be-shown")) {
		t.Error("the result shows a secret")
	}
	var b bytes.Buffer
	b.Write(text)
	b.WriteString("---\n")
	for _, n := range notes {
		fmt.Fprintf(&b, "%d: %s\n", n.Line, n.Text)
	}
	golden.Check(t, "testdata/collector.want", b.Bytes())
}
