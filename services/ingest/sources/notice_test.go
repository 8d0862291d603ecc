package sources

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/internal/golden"
)

// covers: F-5, F-6, F-7 (shape), F-9 (CloudTrail's notice), DEV-55.
func TestNotices(t *testing.T) {
	cases, err := filepath.Glob("testdata/notice/*.in")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, in := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(in), ".in"), func(t *testing.T) {
			body, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			golden.Check(t, strings.TrimSuffix(in, ".in")+".want", render(readNotice(body)))
		})
	}
}

func (v verdict) String() string {
	return [...]string{"unknown", "object", "test", "ignored", "broken"}[v]
}

func render(n notification) []byte {
	var b bytes.Buffer
	if n.records == nil {
		fmt.Fprintf(&b, "no notification: %s\ninner %q\n", n.why, cut(n.inner))
	}
	for i := range n.records {
		r := &n.records[i]
		fmt.Fprintf(&b, "%s bucket=%q key=%q version=%q etag=%q sequencer=%q region=%q size=%d created=%d why=%q\nalone %q\n",
			r.verdict, r.bucket, cut([]byte(r.key)), r.version, r.etag, r.sequencer, r.region, r.size, r.created, r.why, cut(r.body()))
	}
	return b.Bytes()
}

func cut(b []byte) []byte { return b[:min(len(b), 600)] }

// Whatever a queue holds: the reader ends, and what it calls an object has names
// that S3 allows. Each record that is announced alone reads as it did among the
// others.
func FuzzReadNotice(f *testing.F) {
	cases, _ := filepath.Glob("testdata/notice/*.in")
	for _, in := range cases {
		body, err := os.ReadFile(in)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Add(bytes.Repeat([]byte("["), 100_000))
	f.Add(fmt.Appendf(nil, `{"Records":[{"s3":{}%s}]}`, strings.Repeat(`,"a":{}`, 20_000)))
	f.Fuzz(func(t *testing.T, body []byte) {
		before := string(body)
		n := readNotice(body)
		if string(body) != before {
			t.Fatal("the body was changed")
		}
		if len(n.records) > maxNamed {
			t.Fatalf("%d records, more than %d", len(n.records), maxNamed)
		}
		if n.records == nil && n.why == "" {
			t.Fatal("no notification, and no reason why")
		}
		for i := range n.records {
			r := &n.records[i]
			if r.verdict == object && (!bucketName(r.bucket) || r.key == "" || len(r.key) > maxKey || !utf8.ValidString(r.key)) {
				t.Fatalf("object %q / %q has illegal names", r.bucket, r.key)
			}
			if (r.verdict == object || r.verdict == test) == (r.why != "") {
				t.Fatalf("%s with reason %q", r.verdict, r.why)
			}
			alone := readNotice(r.body())
			if len(alone.records) != 1 && !(r.verdict == broken && len(alone.records) == 0) {
				t.Fatalf("%q holds %d records", r.body(), len(alone.records))
			}
			if len(alone.records) == 1 && !same(r, &alone.records[0]) {
				t.Fatalf("read %+v among others, %+v alone", r, alone.records[0])
			}
		}
	})
}

func same(a, b *named) bool {
	x, y := *a, *b
	x.raw, y.raw, x.form, y.form = nil, nil, 0, 0
	return fmt.Sprint(x) == fmt.Sprint(y)
}

func TestGlob(t *testing.T) {
	tests := []struct {
		pattern, s string
		want       bool
	}{
		{"*", "", true},
		{"*", "any/thing", true},
		{"logs", "logs", true},
		{"logs", "logs2", false},
		{"logs-*", "logs-eu", true},
		{"logs-*", "log", false},
		{"*/CloudTrail/*.gz", "a/b/CloudTrail/c/d.gz", true},
		{"*/CloudTrail/*.gz", "a/b/CloudTrail/c/d.gz.tmp", false},
		{"a?c", "abc", true},
		{"a?c", "ac", false},
		{"*ab*ab", "abab", true},
		{"*ab*ab", "ab", false},
		{"a**b", "a-b", true},
		{"", "", true},
		{"", "a", false},
		{"[a]", "a", false},
		{strings.Repeat("*a", 50) + "b", strings.Repeat("a", 5000), false}, // ends soon
	}
	for _, tt := range tests {
		if got := glob(tt.pattern, tt.s); got != tt.want {
			t.Errorf("glob(%q, %q) = %v, want %v", tt.pattern, tt.s, got, tt.want)
		}
	}
}

func BenchmarkReadNotice(b *testing.B) {
	body := cloud.Message(cloud.Direct, cloud.Event{
		Name: "ObjectCreated:Put", Bucket: "trail", Key: "AWSLogs/111122223333/CloudTrail/us-east-1/2026/01/05/x.json.gz", Region: "us-east-1", Size: 1234, Time: time.Unix(1e9, 0),
	})
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if n := readNotice(body); len(n.records) != 1 || n.records[0].verdict != object {
			b.Fatalf("read %+v", n)
		}
	}
}
