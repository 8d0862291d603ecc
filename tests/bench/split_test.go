package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// Every set's floor finds as many records as there are, each a JSON object with what
// identifies it.
func TestFloors(t *testing.T) {
	for _, set := range sets {
		t.Run(set.Name, func(t *testing.T) {
			w, err := set.Make(0.001)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			record := func(r []byte) {
				n++
				if !set.ID(r) {
					t.Fatalf("no id: %s", r)
				}
				if set.Layout != nil {
					lines := newLineMaker(set.Layout, "1", "r")
					lines.begin("bucket", "a/b/c/d", "etag")
					r = lines.line(nil, r)
				}
				if !json.Valid(r) {
					t.Fatalf("no document: %s", r)
				}
			}
			for _, body := range w.Bodies {
				record([]byte(body))
			}
			for _, object := range w.Objects {
				z, err := gzip.NewReader(bytes.NewReader(object))
				if err != nil {
					t.Fatal(err)
				}
				lines := bufio.NewScanner(z)
				lines.Split(set.Split)
				for i := 0; lines.Scan(); i++ {
					if i >= set.Header {
						record(lines.Bytes())
					}
				}
				if err := lines.Err(); err != nil {
					t.Fatal(err)
				}
			}
			if n != w.Records || n < w.Unique || w.Raw == 0 {
				t.Errorf("%d records, want %d, %d of them unique; %d bytes", n, w.Records, w.Unique, w.Raw)
			}
		})
	}
}
