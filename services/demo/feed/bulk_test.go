package feed

import (
	"bytes"
	"io"
	"reflect"
	"testing"

	"github.com/klauspost/compress/gzip"
)

func TestBulk(t *testing.T) {
	const rows = 2000
	for name, tt := range map[string]struct {
		object       func(seed uint64, i, rows int) Object
		head, fields int    // lines before the rows; fields of a row
		separator    string // between them
		least, most  int    // bytes a row
	}{
		"vpcflow":    {BulkVPCFlow, 1, 14, " ", 100, 140},
		"cloudfront": {BulkCloudFront, 2, 33, "\t", 300, 500},
		"umbrella":   {BulkUmbrellaDNS, 0, 13, `","`, 180, 250},
	} {
		t.Run(name, func(t *testing.T) {
			o := tt.object(3, 1, rows)
			if again := tt.object(3, 1, rows); !reflect.DeepEqual(o, again) {
				t.Error("the same object comes out differently")
			}
			if other := tt.object(3, 2, rows); other.Key == o.Key || bytes.Equal(other.Body, o.Body) {
				t.Error("two objects are the same")
			}
			z, err := gzip.NewReader(bytes.NewReader(o.Body))
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(z)
			if err != nil {
				t.Fatal(err)
			}
			lines := bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))[tt.head:]
			if len(lines) != rows || o.Records != rows {
				t.Errorf("%d lines, %d records, want %d", len(lines), o.Records, rows)
			}
			size := 0
			for _, line := range lines {
				if n := bytes.Count(line, []byte(tt.separator)) + 1; n != tt.fields {
					t.Fatalf("%d fields, want %d: %s", n, tt.fields, line)
				}
				size += len(line) + 1
			}
			if size /= rows; size < tt.least || size > tt.most {
				t.Errorf("%d bytes a row, want %d to %d", size, tt.least, tt.most)
			}
		})
	}
	for name, bodies := range map[string][]string{"voiso": BulkVoiso(3, rows), "eventbridge": BulkEventBridge(3, rows)} {
		if len(bodies) != rows || bodies[0] == bodies[1] {
			t.Errorf("%s: %d bodies, want %d different ones", name, len(bodies), rows)
		}
	}
}
